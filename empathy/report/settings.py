"""What every arm was made with, read from the stages themselves: bases, training, sets, prompts, sampling, judges.

Fields are called as in an experiment file, behind the step that they belong to ("dpo: beta", "set: method.rejected").
What has more than a line (prompts, templates) is a text of its own, named by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from empathy.report.cells import Cells, Responder
from empathy.specs import CheckpointSpec, Pooled, RepliesSpec, VerdictsSpec
from empathy.specs.parts import Part
from empathy.stages import Stage

LINE = 80
"""Characters; a longer value is a text."""
NONE = "none"
_BY_DEFAULT = "all linear layers"
"""What LoRA adapts where no `targets` are named."""


@dataclass
class Settings:
    """`shared`: the fields that are the same in every arm that has them. `own`: by arm (slot), the others. `texts`:
    what "text 1", "text 2", ... stand for."""

    shared: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The fields that differ between arms."""
        return list(dict.fromkeys(name for fields in self.own.values() for name in fields))


def settings(cells: Cells) -> Settings:
    """Of all arms of a report."""
    found = Settings()
    arms = {arm.slot: {name: _said(value, found.texts) for name, value in _of(arm)} for arm in cells.arms}
    values: dict[str, set[str]] = {}
    for fields in arms.values():
        for name, value in fields.items():
            values.setdefault(name, set()).add(value)
    for fields in sorted(arms.values(), key=len, reverse=True):  # who has most has the steps in their order
        found.shared |= {name: value for name, value in fields.items() if len(values[name]) == 1}
    for slot, fields in arms.items():
        found.own[slot] = {name: value for name, value in fields.items() if len(values[name]) > 1}
    return found


def _of(arm: Responder) -> Iterator[tuple[str, Any]]:
    assert arm.checkpoint
    steps = list(_steps(arm.checkpoint))
    base = steps[0].inputs.get("base", steps[0])
    assert isinstance(base.spec, CheckpointSpec)
    yield from _fields("base", base.spec, but=("objective", "seed", "max_length_tokens"))
    if base.spec.objective:
        yield from _fields("raise", base.spec.objective, but=("type",))
    for step in steps:
        assert isinstance(step.spec, CheckpointSpec)
        if step.spec.objective:
            yield from _fields(step.spec.objective.type, step.spec.objective, but=("type",))
        yield from _fields("training", step.spec, but=("base", "objective", "template"))
    if "examples" in steps[-1].inputs:
        yield from _taught(steps[-1].inputs["examples"])
    if arm.replies:
        assert isinstance(arm.replies.spec, RepliesSpec)
        yield from _fields("answers", arm.replies.spec.responder, but=("type",))
    judges = {v.judge.model_dump_json(): v for v in arm.verdicts}
    for number, judged in enumerate(judges.values()):
        name = "judge" if len(judges) == 1 else f"judge {number}"
        yield from _fields(name, judged.judge)
        assert isinstance(judged.stage.spec, VerdictsSpec)
        yield f"{name}: cap_words", judged.stage.spec.cap_words


def _taught(examples: Stage) -> Iterator[tuple[str, Any]]:
    yield from _fields("set", examples.spec, but=("objective", "purpose", "split"))
    for name, who in (("replies", "teacher"), ("initial", "first reply")):
        replies = examples.inputs.get(name)
        if replies is None:
            continue
        assert isinstance(replies.spec, RepliesSpec)
        if isinstance(replies.spec.responder, Pooled):
            pooled = [stage.spec.responder for stage in replies.inputs.values() if isinstance(stage.spec, RepliesSpec)]
            yield f"{who}: turns", [f"pooled: {len(pooled)} strategies"]
            yield from _fields(who, pooled[0], but=("type", "turns"))
        else:
            yield from _fields(who, replies.spec.responder, but=("type",))


def _steps(checkpoint: Stage) -> Iterator[Stage]:
    """The trainings that lead from the base to a student."""
    if "policy" in checkpoint.inputs:
        yield from _steps(checkpoint.inputs["policy"])
    yield checkpoint


def _fields(of: str, part: Part, but: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for path, value in _flat(part.model_dump(mode="json", exclude=set(but))):
        yield f"{of}: {path}", _BY_DEFAULT if path == "tuning.targets" and not value else value


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _said(value: Any, texts: list[str]) -> str:
    if value is None or value in ("", []):
        return NONE
    if isinstance(value, list):
        return ", ".join(_said(one, texts) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    said = f"{value:g}" if isinstance(value, float) else str(value)
    if "\n" not in said and len(said) <= LINE:
        return said
    if said not in texts:
        texts.append(said)
    return f"text {texts.index(said) + 1}"
