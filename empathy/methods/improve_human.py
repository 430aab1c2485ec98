"""Method 2: the teacher rewrites the human reply. SFT where the human reply is Good, DPO where it is Bad or Okay."""

from __future__ import annotations

import polars as pl

from empathy.methods.case import BY_HUMAN, EVERY, IMPROVED, Objective, Purpose, Said, on_human_side
from empathy.specs import ImproveHuman


def selects(spec: ImproveHuman, objective: Objective, purpose: Purpose) -> pl.Expr:
    return EVERY if purpose == "heldout" and objective == "sft" else on_human_side(objective)


def teaches(spec: ImproveHuman, purpose: Purpose) -> tuple[Said, ...]:
    return (BY_HUMAN, IMPROVED) if spec.both_replies and purpose == "train" else (IMPROVED,)


def pair(spec: ImproveHuman) -> tuple[Said, Said]:
    return IMPROVED, BY_HUMAN
