"""Method 1: the teacher answers the speaker.

SFT where the human and the teacher are both Good; DPO where the human is Bad or Okay and the teacher Good.
"""

from __future__ import annotations

from empathy.methods.case import ANSWERED, BY_HUMAN, NO_HUMAN, Case, Objective, Purpose, Said
from empathy.records import GOOD
from empathy.specs import Direct


def selects(spec: Direct, objective: Objective, purpose: Purpose, case: Case) -> bool | str:
    if purpose == "heldout" and objective == "sft":
        return True
    if case.dialogue.human_reply is None and (objective == "dpo" or not spec.unrated_is_good):
        return NO_HUMAN
    human = case.rating("human", spec.unrated_is_good)
    on_this_side = (human == GOOD) == (objective == "sft")
    if case.text("learned") is None:  # nothing to rate: a candidate, to be dropped with its reason
        return on_this_side
    teacher = case.rating("learned", spec.unrated_is_good)
    return teacher > human if purpose == "heldout" else on_this_side and teacher == GOOD


def teaches(spec: Direct, purpose: Purpose) -> tuple[Said, ...]:
    return (BY_HUMAN, ANSWERED) if spec.both_replies and purpose == "train" else (ANSWERED,)


def pair(spec: Direct) -> tuple[Said, Said]:
    return ANSWERED, BY_HUMAN
