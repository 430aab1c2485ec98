"""Method 1: the teacher answers the speaker.

SFT where the human and the teacher are both Good; DPO where the human is Bad or Okay and the teacher Good.
"""

from __future__ import annotations

import polars as pl

from empathy.methods.case import (
    ANSWERED,
    BY_HUMAN,
    EVERY,
    Objective,
    Purpose,
    Said,
    both,
    mark,
    rating,
    text,
    where_there,
)
from empathy.records import GOOD
from empathy.specs import Direct


def selects(spec: Direct, objective: Objective, purpose: Purpose) -> pl.Expr:
    if purpose == "heldout" and objective == "sft":
        return EVERY
    human, teacher = (rating(who, spec.unrated_is_good) for who in ("human", "learned"))
    here = human == GOOD if objective == "sft" else where_there("human", human < GOOD)
    wanted = both(here, teacher == GOOD)
    if purpose == "heldout":
        better = mark("learned", spec.unrated_is_good) > mark("human", spec.unrated_is_good)
        wanted = where_there("human", better)
    # Where the teacher said nothing there is nothing to rate: a candidate, to be dropped with its reason.
    return pl.when(text("learned").is_null()).then(here).otherwise(wanted)


def teaches(spec: Direct, purpose: Purpose) -> tuple[Said, ...]:
    return (BY_HUMAN, ANSWERED) if spec.both_replies and purpose == "train" else (ANSWERED,)


def pair(spec: Direct) -> tuple[Said, Said]:
    return ANSWERED, BY_HUMAN
