"""Method 3: the teacher answers, then rewrites its own answer. The sets are split as in method 2, by the human's
rating, or at random.

Rejected, and learned beside the improved reply, is the initial answer (the paper's text) or the human reply (its code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from empathy.methods.case import (
    BY_HUMAN,
    IMPROVED,
    INITIAL,
    Learns,
    Objective,
    Purpose,
    Said,
    drawn_for,
    every,
    on_human_side,
)
from empathy.parts import Part

if TYPE_CHECKING:  # slow to load, and planning needs the options alone
    import polars as pl


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

    def selects(self, objective: Objective, purpose: Purpose) -> pl.Expr:
        if purpose == "heldout" and (objective == "sft" or self.division == "random"):
            return every()
        return drawn_for(objective) if self.division == "random" else on_human_side(objective)

    def teaches(self, purpose: Purpose) -> tuple[Said, ...]:
        original = INITIAL if self.original == "initial" else BY_HUMAN
        return (original, IMPROVED) if self.both_replies and purpose == "train" else (IMPROVED,)

    def pair(self) -> tuple[Said, Said]:
        return IMPROVED, INITIAL if self.rejected == "initial" else BY_HUMAN
