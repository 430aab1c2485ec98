"""How large a student is: from its spec, its folder's config.json, or the table of well-known bases."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from empathy.specs import CheckpointSpec, RandomBase
from empathy.stages import Stage


class Shape(BaseModel):
    """A Llama-like decoder: attention with `kv_heads`, a gated feed-forward block."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocab: int
    tied: bool = False
    """The output head is the embedding."""

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's matrices: q, k, v, o, gate, up, down."""
        h, q, kv, ffn = self.hidden, self.heads * self.head_width, self.kv_heads * self.head_width, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, ffn), (h, ffn), (ffn, h)]

    @property
    def multiplied(self) -> int:
        """N of the FLOP formulas: weights that every token is multiplied with (embeddings are looked up)."""
        return self.layers * sum(i * o for i, o in self.linears) + self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """All weights, norms aside."""
        return self.multiplied + (0 if self.tied else self.hidden * self.vocab)

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA of `rank` on all linear layers: rank * (in + out) each."""
        return self.layers * rank * sum(i + o for i, o in self.linears)


@cache
def known() -> Mapping[str, Shape]:
    """The table of well-known bases (shapes.toml) by name on the hub."""
    text = (files("jobs.estimate") / "shapes.toml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Shape]).validate_python(tomllib.loads(text))


def shape_of(checkpoint: Stage) -> Shape | None:
    """The shape of a checkpoint's base; None when nothing here tells it."""
    stage = checkpoint.inputs.get("base", checkpoint)
    spec = stage.spec
    assert isinstance(spec, CheckpointSpec)
    if isinstance(spec.base, RandomBase):
        return of_random(spec.base)
    assert spec.base is not None
    return of_model(stage.locator.get("path", ""), spec.base.model)


def of_random(b: RandomBase) -> Shape:
    """The shape that the file gives to a base made from nothing."""
    return Shape(
        hidden=b.hidden,
        layers=b.layers,
        heads=b.heads,
        kv_heads=b.kv_heads,
        head_width=b.hidden // b.heads,
        intermediate=b.intermediate,
        vocab=b.vocab,
    )


def of_model(path: str, name: str) -> Shape | None:
    """The shape of the model in the folder `path`, or of this name; None when nothing here tells it."""
    config = Path(path).expanduser() / "config.json"
    return from_config(json.loads(config.read_text())) if config.is_file() else known().get(name)


def from_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json of a Llama-like model tells; None when it is of another kind."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if not all(isinstance(config.get(name), int) for name in names):
        return None
    hidden, layers, heads, intermediate, vocab = (config[name] for name in names)
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or hidden // heads,
        intermediate=intermediate,
        vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", False)),
    )
