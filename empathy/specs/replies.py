"""Who answers dialogues."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from empathy.specs.parts import Part, Spec
from empathy.specs.sides import Sides


class Recorded(Part):
    """Replies stored with the data, by responder name ("human" included)."""

    type: Literal["recorded"] = "recorded"
    responder: str


class Teacher(Part):
    """A model behind an OpenAI-compatible URL. `turns` are prompt templates, one a chat turn; the last reply is kept.

    Placeholders: {dialogue} the conversation so far, {reply} the reply to rewrite (from input `improves`).
    """

    type: Literal["teacher"] = "teacher"
    provider: str
    model: str
    turns: tuple[str, ...] = Field(min_length=1)
    system: str | None = None
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(200, ge=1)
    seed: int | None = None
    samples: int = Field(1, ge=1)


class Student(Part):
    """The checkpoint of input `checkpoint` answers under its own template."""

    type: Literal["student"] = "student"
    system: str | None = None
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(128, ge=1)
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"


class Pooled(Part):
    """The replies of several stages (inputs `of:0`, `of:1`, ...) to the same dialogues, as samples of one stage: what a
    union of strategies teaches. Nothing is asked.

    Which stage's reply is sample 0 is drawn by dialogue id, so that whoever takes one reply a dialogue takes an even
    mix.
    """

    type: Literal["pooled"] = "pooled"
    seed: int = 0


Responder = Annotated[Recorded | Teacher | Student | Pooled, Field(discriminator="type")]


class RepliesSpec(Spec):
    """Somebody answers dialogues. Inputs: `dialogues`; `improves` (teacher rewrites); `checkpoint` (students);
    `of:K` (pooled)."""

    kind: ClassVar[str] = "replies"
    responder: Responder
    split: Sides = None
    """The sides of the split that are asked; None for all."""
