"""Method 1: the teacher answers the speaker.

SFT where the human and the teacher are both Good; DPO where the human is Bad or Okay and the teacher Good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from empathy.methods.case import (
    ANSWERED,
    BY_HUMAN,
    Learns,
    Objective,
    Purpose,
    Said,
    both,
    every,
    mark,
    rating,
    text,
    where_there,
)
from empathy.parts import Part
from empathy.records import GOOD

if TYPE_CHECKING:  # slow to load, and planning needs the options alone
    import polars as pl


class Direct(Part):
    """Method 1: the teacher answers; chosen over a human reply that is not Good."""

    learns: ClassVar[Learns] = "answers"
    type: Literal["direct"] = "direct"
    both_replies: bool = True
    """SFT on the human and the teacher's reply (the paper), or on the teacher's alone."""
    unrated_is_good: bool = False
    """Take teacher replies without a rating as Good. False: a dialogue without ratings is an error."""

    def selects(self, objective: Objective, purpose: Purpose) -> pl.Expr:
        import polars as pl

        if purpose == "heldout" and objective == "sft":
            return every()
        human, teacher = (rating(who, self.unrated_is_good) for who in ("human", "learned"))
        here = human == GOOD if objective == "sft" else where_there("human", human < GOOD)
        wanted = both(here, teacher == GOOD)
        if purpose == "heldout":
            better = mark("learned", self.unrated_is_good) > mark("human", self.unrated_is_good)
            wanted = where_there("human", better)
        # Where the teacher said nothing there is nothing to rate: a candidate, to be dropped with its reason.
        return pl.when(text("learned").is_null()).then(here).otherwise(wanted)

    def teaches(self, purpose: Purpose) -> tuple[Said, ...]:
        return (BY_HUMAN, ANSWERED) if self.both_replies and purpose == "train" else (ANSWERED,)

    def pair(self) -> tuple[Said, Said]:
        return ANSWERED, BY_HUMAN
