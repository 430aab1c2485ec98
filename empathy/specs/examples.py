"""What is learned from, or measured on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from empathy.records import Split
from empathy.specs.parts import Part, Spec


class Direct(Part):
    """Method 1: the teacher answers; chosen over a human reply that is not Good."""

    type: Literal["direct"] = "direct"
    both_replies: bool = True
    """SFT on the human and the teacher's reply (the paper), or on the teacher's alone."""
    unrated_is_good: bool = False
    """Take teacher replies without a rating as Good. False: a dialogue without ratings is an error."""


class ImproveHuman(Part):
    """Method 2: the teacher rewrites the human reply."""

    type: Literal["improve_human"] = "improve_human"
    both_replies: bool = True


class ImproveLlm(Part):
    """Method 3: the teacher rewrites its own first answer. `rejected`: "initial" is the paper's text, "human" its
    code."""

    type: Literal["improve_llm"] = "improve_llm"
    both_replies: bool = True
    rejected: Literal["initial", "human"] = "initial"


class Human(Part):
    """No teacher: SFT on the human replies alone. Raises a random base to speech, and is the baseline of every
    method."""

    type: Literal["human"] = "human"
    least_rating: int | None = Field(None, ge=1, le=3)
    """Keep replies rated at least this; None takes all, rated or not."""


MethodSpec = Annotated[Direct | ImproveHuman | ImproveLlm | Human, Field(discriminator="type")]


class ExamplesSpec(Spec):
    """A training or held-out set. Inputs: `dialogues`, `replies` (what is learned), `initial` (what `replies`
    improved, if any).

    `objective` "sft" gives Demonstrations, "dpo" Preferences. `purpose` "train" selects as mission 2 says; "heldout"
    takes every test dialogue's reply (sft), or every test pair where the learned reply is rated above the human's
    (dpo).
    """

    kind: ClassVar[str] = "examples"
    method: MethodSpec
    objective: Literal["sft", "dpo"]
    purpose: Literal["train", "heldout"] = "train"
    split: Split = "train"
    system: str | None = None
    screens: tuple[str, ...] = ()
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Share of candidates the screens may drop before the stage fails."""
