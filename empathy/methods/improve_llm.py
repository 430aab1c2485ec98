"""Method 3: the teacher answers, then rewrites its own answer. The sets are split as in method 2, by the human's
rating, or at random.

Rejected, and learned beside the improved reply, is the initial answer (the paper's text) or the human reply (its code).
"""

from __future__ import annotations

import polars as pl

from empathy.methods.case import BY_HUMAN, EVERY, IMPROVED, INITIAL, Objective, Purpose, Said, drawn_for, on_human_side
from empathy.specs import ImproveLlm


def selects(spec: ImproveLlm, objective: Objective, purpose: Purpose) -> pl.Expr:
    if purpose == "heldout" and (objective == "sft" or spec.division == "random"):
        return EVERY
    return drawn_for(objective) if spec.division == "random" else on_human_side(objective)


def teaches(spec: ImproveLlm, purpose: Purpose) -> tuple[Said, ...]:
    original = INITIAL if spec.original == "initial" else BY_HUMAN
    return (original, IMPROVED) if spec.both_replies and purpose == "train" else (IMPROVED,)


def pair(spec: ImproveLlm) -> tuple[Said, Said]:
    return IMPROVED, INITIAL if spec.rejected == "initial" else BY_HUMAN
