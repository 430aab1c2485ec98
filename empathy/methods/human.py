"""No teacher: SFT on the human replies alone, all of them or those rated at least `least_rating`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from empathy.methods.case import BY_HUMAN, Learns, Objective, Purpose, Said, every, rating, where_there
from empathy.parts import Part

if TYPE_CHECKING:  # slow to load, and planning needs the options alone
    import polars as pl


class Human(Part):
    """No teacher: SFT on the human replies alone. Raises a random base to speech, and is the baseline of every
    method."""

    learns: ClassVar[Learns] = "human"
    type: Literal["human"] = "human"
    least_rating: int | None = Field(None, ge=1, le=3)
    """Keep replies rated at least this; None takes all, rated or not."""

    def selects(self, objective: Objective, purpose: Purpose) -> pl.Expr:
        if purpose == "heldout" or self.least_rating is None:
            return where_there("human", every())
        return rating("human") >= self.least_rating

    def teaches(self, purpose: Purpose) -> tuple[Said, ...]:
        return (BY_HUMAN,)

    def pair(self) -> tuple[Said, Said]:
        raise ValueError("method = 'human': it has no teacher, so no pairs for DPO; use regime sft, or another method")
