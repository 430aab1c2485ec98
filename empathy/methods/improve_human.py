"""Method 2: the teacher rewrites the human reply. SFT where the human reply is Good, DPO where it is Bad or Okay."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from empathy.methods.case import BY_HUMAN, IMPROVED, Learns, Objective, Purpose, Said, every, on_human_side
from empathy.parts import Part

if TYPE_CHECKING:  # slow to load, and planning needs the options alone
    import polars as pl


class ImproveHuman(Part):
    """Method 2: the teacher rewrites the human reply."""

    learns: ClassVar[Learns] = "rewritten_human"
    type: Literal["improve_human"] = "improve_human"
    both_replies: bool = True

    def selects(self, objective: Objective, purpose: Purpose) -> pl.Expr:
        return every() if purpose == "heldout" and objective == "sft" else on_human_side(objective)

    def teaches(self, purpose: Purpose) -> tuple[Said, ...]:
        return (BY_HUMAN, IMPROVED) if self.both_replies and purpose == "train" else (IMPROVED,)

    def pair(self) -> tuple[Said, Said]:
        return IMPROVED, BY_HUMAN
