"""Who compares replies, and the report."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from empathy.records import Split
from empathy.specs.parts import Part, Spec


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


class VerdictsSpec(Spec):
    """Inputs `dialogues`, `a` (the arm's replies), `b` (the opponent's). Replies are treated alike and capped at
    `cap_words`."""

    kind: ClassVar[str] = "verdicts"
    judge: Judge
    cap_words: int = Field(97, ge=1)
    split: Split = "test"


class ReportSpec(Spec):
    """Numbers of all arms. Inputs are named `SLOT:WHAT` (see `empathy.experiment`); display names are in the
    locator."""

    kind: ClassVar[str] = "report"
    bootstrap: int = Field(10_000, ge=100)
    seed: int = 0
    examples_shown: int = Field(5, ge=0)
