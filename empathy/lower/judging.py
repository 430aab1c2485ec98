"""Who is compared with whom by which judges, and whose replies are rated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from empathy import judges
from empathy.experiment import Experiment, Ratings, Scoring
from empathy.specs import Judge, Rubric, VerdictsSpec
from empathy.specs.sides import Sides
from empathy.stages import Stage


@dataclass(frozen=True)
class Side:
    """Somebody who is compared: the slot in the report, the replies, and what people call them."""

    slot: str
    replies: Stage
    name: str


def compared(x: Experiment, dialogues: Stage, side: Side, opponents: Sequence[Side]) -> dict[str, Stage]:
    """Inputs of the report: the verdicts on one side against each opponent, a judge each."""
    several = len(x.judge.models) > 1
    return {
        f"{side.slot}:verdicts:{theirs.slot}" + (f":judge{i}" if several else ""): _verdicts(
            x,
            model,
            {"dialogues": dialogues, "a": side.replies, "b": theirs.replies},
            f"{side.name} against {theirs.name}" + (f" by {model}" if several else ""),
        )
        for theirs in opponents
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


def scores(ratings: Ratings, dialogues: Stage, replies: Stage, sides: Sides) -> Stage:
    """What the [ratings] judge gives to each of the replies on these sides of the split."""
    label = f"{ratings.model} rates {replies.label}"
    spec = VerdictsSpec(judge=_rubric(ratings), split=sides)
    return Stage(spec, {"dialogues": dialogues, "a": replies}, label=label)


def rubric_scores(x: Experiment, dialogues: Stage, side: Side) -> dict[str, Stage]:
    """Input of the report: what the [rubric] judge gives to one side's replies to the test dialogues; nothing without
    such a table."""
    if x.rubric is None:
        return {}
    spec = VerdictsSpec(judge=_rubric(x.rubric), cap_words=x.judge.cap_words)
    label = f"{x.rubric.model} scores {side.name}"
    return {f"{side.slot}:scores": Stage(spec, {"dialogues": dialogues, "a": side.replies}, label=label)}


def _rubric(asked: Scoring) -> Rubric:
    return Rubric(
        provider=asked.provider,
        model=asked.model,
        template=judges.template("rubric"),
        calls=asked.calls,
        temperature=asked.temperature,
        max_tokens=asked.max_tokens,
        attempts=asked.attempts,
    )
