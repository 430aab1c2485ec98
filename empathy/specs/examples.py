"""What is learned from, or measured on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from empathy.records import Split
from empathy.specs.parts import Part, Spec

Learns = Literal["human", "answers", "rewritten_human", "rewritten_answers"]
"""Which replies a method needs: people's alone, the teacher's answers, or what the teacher made of either."""


class Direct(Part):
    """Method 1: the teacher answers; chosen over a human reply that is not Good."""

    learns: ClassVar[Learns] = "answers"
    type: Literal["direct"] = "direct"
    both_replies: bool = True
    """SFT on the human and the teacher's reply (the paper), or on the teacher's alone."""
    unrated_is_good: bool = False
    """Take teacher replies without a rating as Good. False: a dialogue without ratings is an error."""


class ImproveHuman(Part):
    """Method 2: the teacher rewrites the human reply."""

    learns: ClassVar[Learns] = "rewritten_human"
    type: Literal["improve_human"] = "improve_human"
    both_replies: bool = True


class ImproveLlm(Part):
    """Method 3: the teacher rewrites its own first answer. What the paper's text and its code tell differently can be
    chosen; the defaults are the text."""

    learns: ClassVar[Learns] = "rewritten_answers"
    type: Literal["improve_llm"] = "improve_llm"
    both_replies: bool = True
    rejected: Literal["initial", "human"] = "initial"
    """DPO's rejected reply: the teacher's first answer (the text), or the human reply (the code)."""
    original: Literal["initial", "human"] = "initial"
    """The reply that SFT learns beside the improved one: the teacher's first answer (the text), or the human reply
    (the code)."""
    division: Literal["ratings", "random"] = "ratings"
    """Which dialogues go to SFT and which to DPO: by the human reply's rating as in method 2 (the text), or at random
    (the code), where SFT takes the round(`sft_share` * n) of the n dialogues of the split whose
    `empathy.splits.draw("division", division_seed, dialogue.id)` is lowest, DPO the others; held-out pairs are then
    all dialogues of their split. Ratings are not looked at."""
    sft_share: float = Field(950 / 1750, gt=0, lt=1)
    division_seed: int = 0


class Human(Part):
    """No teacher: SFT on the human replies alone. Raises a random base to speech, and is the baseline of every
    method."""

    learns: ClassVar[Learns] = "human"
    type: Literal["human"] = "human"
    least_rating: int | None = Field(None, ge=1, le=3)
    """Keep replies rated at least this; None takes all, rated or not."""


AnyMethod = Direct | ImproveHuman | ImproveLlm | Human
MethodSpec = Annotated[AnyMethod, Field(discriminator="type")]
METHODS: dict[str, type[AnyMethod]] = {method.model_fields["type"].default: method for method in get_args(AnyMethod)}
"""By name. The union is the registry."""


class ExamplesSpec(Spec):
    """A training or held-out set. Inputs: `dialogues`, `replies` (what is learned; several samples a dialogue give
    several examples, equal ones once), `initial` (what `replies` improved, if any), and with `good` set `scores:human`
    and, where the method selects by it (direct), `scores:learned`.

    `objective` "sft" gives Demonstrations, "dpo" Preferences. `purpose` "train" selects as mission 2 says; "heldout"
    takes every test dialogue's reply (sft), or every test pair where the learned reply is rated above the human's
    (dpo).

    `scores:WHO` is a verdicts stage of a rubric judge: parts of `Score`, joined by dialogue_id and, for learned
    replies, sample (`scores:human` has sample 0 alone). With `good` set people's ratings and `unrated_is_good` are not
    looked at: a reply is Good where Score.overall >= `good`, and "rated above" compares Score.overall. A reply without
    a row, or whose overall is None, is unrated: its dialogue is a candidate that is dropped as "unrated" and counted,
    in SFT and in DPO alike.
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
    good: float | None = Field(None, ge=1, le=5)
    """A judge's score takes the place of people's ratings; the least mean score of a Good reply. None: ratings."""
