"""What is learned from, or measured on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from empathy.methods.direct import Direct
from empathy.methods.human import Human
from empathy.methods.improve_human import ImproveHuman
from empathy.methods.improve_llm import ImproveLlm
from empathy.records import Split
from empathy.specs.parts import Spec

AnyMethod = Direct | ImproveHuman | ImproveLlm | Human
MethodSpec = Annotated[AnyMethod, Field(discriminator="type")]
METHODS: dict[str, type[AnyMethod]] = {method.model_fields["type"].default: method for method in get_args(AnyMethod)}
"""By name. The union is the registry."""
_REVISED_SCREENS = frozenset(("cut_off", "refusal", "echoes_label", "names_itself_ai", "near_duplicate"))
"""Revision 2: more phrases, and replies in nearly the same words."""


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

    @property
    def revision(self) -> int:
        """A set that no revised screen looks at is what it was."""
        screened = self.method.learns != "human" and not _REVISED_SCREENS.isdisjoint(self.screens)
        return 2 if screened else 1
