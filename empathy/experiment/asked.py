"""[teacher], [ratings], [rubric] and [judge]: the models that are asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from empathy.experiment.sections import LISTED, MOST_TEMPERATURE, MOST_TOKENS, Section
from empathy.parts import Seed64

Opponent = Literal["base", "human", "teacher", "naive"]
MOST_CALLS = 1_000
"""About one reply, or one pair of them."""


class Teacher(Section):
    """The model that is asked where replies are not recorded with the data."""

    provider: str = "openai"
    model: str = Field(min_length=1)
    temperature: float = Field(0.0, ge=0, le=MOST_TEMPERATURE)
    max_tokens: int = Field(200, ge=1, le=MOST_TOKENS)
    seed: Seed64 | None = None
    prompts: str | None = None
    """A folder of TOML files that adds to or replaces the strategies of the package."""
    unrated_is_good: bool = False
    """Method direct without ratings of the teacher's replies: take them all as Good."""


class Scoring(Section):
    """[rubric]: every reply to a test dialogue is rated by itself too, 1 to 5 in three dimensions, `calls` times: those
    of bases, arms, teachers and people. A reply whose rating cannot be read has none, and is counted."""

    provider: str = "openai"
    model: str = Field(min_length=1)
    calls: int = Field(3, ge=1, le=MOST_CALLS)
    temperature: float = Field(0.7, ge=0, le=MOST_TEMPERATURE)
    max_tokens: int = Field(400, ge=16, le=MOST_TOKENS)
    attempts: int = Field(3, ge=1, le=3)


class Ratings(Scoring):
    """A judge's scores in the place of people's ratings: which replies are Good enough to learn from.

    Each reply is rated by itself, 1 to 5 in three dimensions, `calls` times; it is Good if the mean of all is `good` or
    more. A reply whose rating cannot be read is unrated: its dialogue teaches nothing, and is counted.
    """

    good: float = Field(4.0, ge=1, le=5)


class Judging(Section):
    """Who compares replies, and against whom."""

    provider: str = "openai"
    models: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], LISTED] = Field(min_length=1)
    mode: Literal["robust", "paper"] = "robust"
    temperature: float = Field(0.0, ge=0, le=MOST_TEMPERATURE)
    max_tokens: int = Field(700, ge=16, le=MOST_TOKENS)
    repeats: int = Field(1, ge=1, le=MOST_CALLS)
    attempts: int = Field(3, ge=1, le=3)
    cap_words: int = Field(97, ge=1, le=MOST_TOKENS)
    opponents: tuple[Opponent, ...] = ("base", "human", "teacher")
    """Whom an arm is compared with. The base is compared with "human" and "teacher" too: what was there before. "naive"
    is the arm that differs in its strategy alone."""
