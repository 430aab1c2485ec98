"""No teacher: SFT on the human replies alone, all of them or those rated at least `least_rating`."""

from __future__ import annotations

from empathy.methods.case import BY_HUMAN, NO_HUMAN, Case, Objective, Purpose, Said
from empathy.specs import Human


def selects(spec: Human, objective: Objective, purpose: Purpose, case: Case) -> bool | str:
    if case.dialogue.human_reply is None:
        return NO_HUMAN
    if purpose == "heldout" or spec.least_rating is None:
        return True
    return case.rating("human") >= spec.least_rating


def teaches(spec: Human, purpose: Purpose) -> tuple[Said, ...]:
    return (BY_HUMAN,)


def pair(spec: Human) -> tuple[Said, Said]:
    raise ValueError("method = 'human': it has no teacher, so no pairs for DPO; use regime sft, or another method")
