"""Method 3: the teacher answers, then rewrites its own answer. The sets are split as in method 2, by the human's
rating.

Rejected is the initial answer (the paper's text) or the human reply (its code).
"""

from __future__ import annotations

from empathy.methods.case import BY_HUMAN, IMPROVED, INITIAL, Case, Objective, Purpose, Said
from empathy.specs import ImproveLlm


def selects(spec: ImproveLlm, objective: Objective, purpose: Purpose, case: Case) -> bool | str:
    return (purpose == "heldout" and objective == "sft") or case.on_human_side(objective)


def teaches(spec: ImproveLlm, purpose: Purpose) -> tuple[Said, ...]:
    return (INITIAL, IMPROVED) if spec.both_replies and purpose == "train" else (IMPROVED,)


def pair(spec: ImproveLlm) -> tuple[Said, Said]:
    return IMPROVED, INITIAL if spec.rejected == "initial" else BY_HUMAN
