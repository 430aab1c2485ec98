"""[teacher], [ratings] and [judge]: the models that are asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from empathy.experiment.sections import LISTED, Section


class Teacher(Section):
    """The model that is asked where replies are not recorded with the data."""

    provider: str = "openai"
    model: str
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(200, ge=1)
    seed: int | None = None
    prompts: str | None = None
    """A folder of TOML files that adds to or replaces the strategies of the package."""
    wording: int = Field(0, ge=0)
    unrated_is_good: bool = False
    """Method direct without ratings of the teacher's replies: take them all as Good."""


class Judging(Section):
    """Who compares replies, and against whom."""

    provider: str = "openai"
    models: Annotated[tuple[str, ...], LISTED] = Field(min_length=1)
    mode: Literal["robust", "paper"] = "robust"
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(700, ge=16)
    repeats: int = Field(1, ge=1)
    attempts: int = Field(3, ge=1, le=3)
    cap_words: int = Field(97, ge=1)
    opponents: tuple[Literal["base", "human", "teacher"], ...] = ("base", "human", "teacher")
