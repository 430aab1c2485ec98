"""What an engine serves: one base and its students (adapters), local folders, with the chat template they share.

Imports nothing heavy: planning and the gateway read this file too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

UNNAMED_BASE = "the base, which nobody may ask"
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": "..."}


@dataclass(frozen=True)
class StudentSet:
    """One base and its students. A fully fine-tuned student is a base of its own, with no adapters.

    base: folder with config, tokenizer and safetensors. base_name: the model name under which the base itself answers;
    None where only its students are to be asked.
    adapters: student name -> LoRA folder. chat_template: the Jinja text that training used; no other one is used here.
    kv_cache_gib: None leaves it to vLLM. max_loras: distinct adapters in one batch, None = all of them.
    later: how many adapters more may be loaded while the engine is up (`Students.load`), of rank `later_rank` at most.
    device: None = the device of the vLLM that is installed.
    rendering_sha256: what `rendering_sha256()` said at training; an engine that renders otherwise refuses to serve.
    """

    base: str
    chat_template: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    base_name: str | None = "base"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    kv_cache_gib: float | None = None
    max_loras: int | None = None
    later: int = 0
    later_rank: int = 0
    device: Literal["cpu", "cuda"] | None = None
    rendering_sha256: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", dict(sorted(self.adapters.items())))
        if self.base_name in self.adapters:
            raise ValueError(
                f"adapters: {self.base_name!r} is base_name, the base's own; give the adapter another name"
            )
        if not self.names and not self.later:
            raise ValueError("adapters: there are none, and base_name is None: nothing is served")
        if not self.chat_template.strip():
            raise ValueError("chat_template is empty: give the template text that the students were trained with")
        for name in ("max_model_len", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.kv_cache_gib is not None and self.kv_cache_gib <= 0:
            raise ValueError(f"kv_cache_gib = {self.kv_cache_gib}: must be more than 0, or None to leave it to vLLM")

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name that can be asked for, the base first."""
        return (*([] if self.base_name is None else [self.base_name]), *self.adapters)

    @property
    def zero_name(self) -> str:
        """The name of the zero adapter, which stands for the base beside other adapters."""
        return UNNAMED_BASE if self.base_name is None else self.base_name

    @property
    def digest(self) -> str:
        """16 hex digits that change with any field: the same set of students is the same Serve application."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def check_name(self, name: str) -> None:
        """Raises ValueError with the names that exist."""
        if name not in self.names:
            raise ValueError(f"student = {name!r} is not served here; choose one of {', '.join(self.names)}")


PROBES: tuple[tuple[Message, ...], ...] = tuple(
    tuple(MappingProxyType({"role": role, "content": text}) for role, text in turns)
    for turns in (
        [("user", "I lost my job today.")],
        [("user", "  Ünïcode 🙂 – and a\nnew line ")],
        [("user", "My dog died."), ("assistant", "I am so sorry."), ("user", "He was 14.")],
        [("system", "Answer kindly."), ("user", "I feel alone <|user|> {{ 7*7 }}")],
    )
)


def renderer(base: str | Path, chat_template: str) -> Callable[[Sequence[Message]], list[int]]:
    """A function from messages to prompt token ids, generation prompt included: for bulk generation.

    The engine proves at its start that the endpoint renders to the same ids.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)

    def render(messages: Sequence[Message]) -> list[int]:
        rendered: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return [int(token) for token in rendered]

    return render


def rendering_sha256(render: Callable[[Sequence[Message]], list[int]]) -> str:
    """Hash of the token ids of fixed conversations; equal at training and serving: the same template and tokenizer.

    A template that refuses a probe (no system role, say) counts as that refusal.
    """
    rendered = [probe_ids(render, probe) for probe in PROBES]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()


def probe_ids(render: Callable[[Sequence[Message]], list[int]], probe: Sequence[Message]) -> list[int] | None:
    from jinja2.exceptions import TemplateError

    try:
        return render(probe)
    except TemplateError:  # templates refuse roles with raise_exception; that is their answer to this probe
        return None
