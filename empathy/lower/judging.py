"""Who is compared with whom, by which judges."""

from __future__ import annotations

from empathy import judges
from empathy.experiment import Experiment
from empathy.lower.cells import Cell
from empathy.specs import Judge, VerdictsSpec
from empathy.stages import Stage


def compared(x: Experiment, dialogues: Stage, cell: Cell, opponents: dict[str, Stage]) -> dict[str, Stage]:
    """Inputs of the report: the verdicts on a cell against each opponent (slot -> replies), a judge each."""
    several = len(x.judge.models) > 1
    return {
        f"{cell.slot}:verdicts:{opponent}" + (f":judge{i}" if several else ""): _verdicts(
            x, model, {"dialogues": dialogues, "a": cell.replies, "b": theirs}, f"{cell.name} against {opponent}"
        )
        for opponent, theirs in opponents.items()
        for i, model in enumerate(x.judge.models)
    }


def _verdicts(x: Experiment, model: str, inputs: dict[str, Stage], label: str) -> Stage:
    j = x.judge
    judge = Judge(
        provider=j.provider,
        model=model,
        mode=j.mode,
        template=judges.template(j.mode),
        temperature=j.temperature,
        max_tokens=j.max_tokens,
        repeats=j.repeats,
        attempts=j.attempts,
    )
    return Stage(VerdictsSpec(judge=judge, cap_words=j.cap_words), inputs, label=label)
