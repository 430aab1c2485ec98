"""No teacher: SFT on the human replies alone, all of them or those rated at least `least_rating`."""

from __future__ import annotations

import polars as pl

from empathy.methods.case import BY_HUMAN, EVERY, Objective, Purpose, Said, rating, where_there
from empathy.specs import Human


def selects(spec: Human, objective: Objective, purpose: Purpose) -> pl.Expr:
    if purpose == "heldout" or spec.least_rating is None:
        return where_there("human", EVERY)
    return rating("human") >= spec.least_rating


def teaches(spec: Human, purpose: Purpose) -> tuple[Said, ...]:
    return (BY_HUMAN,)


def pair(spec: Human) -> tuple[Said, Said]:
    raise ValueError("method = 'human': it has no teacher, so no pairs for DPO; use regime sft, or another method")
