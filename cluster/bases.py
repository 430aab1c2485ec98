"""Students' bases that were not made here, looked at before a teacher is paid: folders, and names of a model hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.profile import Profile
from cluster.weights import found_model
from empathy.experiment.students import HEAD_WIDTHS
from empathy.specs import CheckpointSpec, HubBase
from empathy.stages import Stage, walk
from serving.adapters import check_base

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""A folder with a tokenizer has one of these."""


def needed(pending: Iterable[Stage]) -> list[Stage]:
    """The bases that making `pending` loads, as far as they were not made here."""
    checkpoints = [s if s.kind == "checkpoint" else s.inputs.get("checkpoint") for s in pending]
    return [s for s in walk(c for c in checkpoints if c) if _is_found(s)]


def _is_found(stage: Stage) -> bool:
    return isinstance(stage.spec, CheckpointSpec) and isinstance(stage.spec.base, HubBase)


def check(bases: Iterable[Stage], profile: Profile) -> None:
    """`check_model` of each. Raises ValueError naming the student."""
    for stage in bases:
        spec = stage.spec
        assert isinstance(spec, CheckpointSpec)
        assert isinstance(spec.base, HubBase)
        field = f"students.{stage.label.removesuffix(' base')}.model"
        check_model(field, stage.locator["path"], spec.base.revision, spec.template is None, profile)


def check_model(field: str, model: str, revision: str | None, own_template: bool, profile: Profile) -> Path:
    """The folder of what can be looked at. Raises ValueError naming `field` for a model that a run could not use: not
    there (nor on a hub that can be reached), no config, no safetensors weights, pickles, no tokenizer, no chat
    template, heads that vLLM cannot serve.

    Of a name on the hub what is small is fetched and looked at; its weights are not.
    """
    folder = found_model(model, revision, field, weights=False)
    try:
        if Path(model).expanduser().is_dir():
            check_base(folder)
        _check_small(folder, own_template, on_cpu=profile.engine.gpus == 0)
    except ValueError as error:  # one place that says whose base it was
        raise ValueError(f"{field} = {model!r}: {error}") from error
    return folder


def _check_small(folder: Path, own_template: bool, on_cpu: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError("there is no config.json; give a Hugging Face model")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"there is no tokenizer ({', '.join(TOKENIZERS)}); save the model's beside its weights")
    if own_template and not _brings_template(folder):
        raise ValueError('it brings no chat template; give one, for instance template = "plain"')
    config = _read(folder / "config.json")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    width = config.get("head_dim") or (hidden // heads if heads and hidden else None)
    if on_cpu and width and width not in HEAD_WIDTHS:
        raise ValueError(
            f"its attention heads are {width} wide; vLLM on CPUs takes {', '.join(map(str, HEAD_WIDTHS))} (give "
            "[engine] gpus in the profile, or another model)"
        )


def _brings_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    said = folder / "tokenizer_config.json"
    return said.is_file() and bool(_read(said).get("chat_template"))


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # a download that broke off
        raise ValueError(f"{file.name} cannot be read ({error}); fetch the model anew") from error
    return found
