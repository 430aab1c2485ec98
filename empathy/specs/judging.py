"""Who compares or scores replies, and the report."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from empathy.specs.parts import Part, Spec
from empathy.specs.sides import Sides


class Judge(Part):
    """Who compares, and how. `template` is the prompt's text."""

    provider: str
    model: str
    mode: Literal["robust", "paper"] = "robust"
    template: str
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(700, ge=16)
    repeats: int = Field(1, ge=1)
    attempts: int = Field(3, ge=1, le=3)
    seed: int = 0

    @property
    def calls(self) -> int:
        """Calls a dialogue, if every first attempt is readable and none is decided without a call."""
        return self.repeats * (2 if self.mode == "robust" else 1)


class Rubric(Part):
    """Who gives one reply a score of 1 to 5 in each dimension: the mean of `calls` calls. `template` is the prompt's
    text.

    The temperature is not 0 by default: three calls at 0 would say one thing three times.
    """

    type: Literal["rubric"] = "rubric"
    provider: str
    model: str
    template: str
    calls: int = Field(3, ge=1)
    temperature: float = Field(0.7, ge=0)
    max_tokens: int = Field(400, ge=16)
    attempts: int = Field(3, ge=1, le=3)


def _type_of(judge: Any) -> str:
    """A pairwise judge's spec has no field `type`: one would be a new key for verdicts that were paid for."""
    return str(judge.get("type", "pairwise") if isinstance(judge, dict) else getattr(judge, "type", "pairwise"))


AnyJudge = Annotated[
    Annotated[Judge, Tag("pairwise")] | Annotated[Rubric, Tag("rubric")],
    Discriminator(_type_of),
]


class VerdictsSpec(Spec):
    """Inputs `dialogues`, `a` (the arm's replies), and for a pairwise judge `b` (the opponent's). A pairwise judge
    gives parts of `Verdict`, a rubric parts of `Score`, one a reply. Replies are treated alike and capped at
    `cap_words`."""

    kind: ClassVar[str] = "verdicts"
    judge: AnyJudge
    cap_words: int = Field(97, ge=1)
    split: Sides = "test"
    """The sides of the split that are judged; None for all."""


class ReportSpec(Spec):
    """Numbers of all arms. Inputs are named `SLOT:WHAT` (see `empathy.experiment`); display names are in the
    locator."""

    kind: ClassVar[str] = "report"
    revision: ClassVar[int] = 4
    bootstrap: int = Field(10_000, ge=100)
    seed: int = 0
    examples_shown: int = Field(5, ge=0)
