"""The seven stage kinds and what identifies each: everything here is in the key, nothing else is.

Place and speed (paths, workers, ZeRO stage, micro-batch, URLs) are not here: they live in a stage's `locator` or in the
profile. `revision` is raised by hand when a change of code changes what a kind makes.
"""

from __future__ import annotations

from empathy.methods.direct import Direct
from empathy.methods.human import Human
from empathy.methods.improve_human import ImproveHuman
from empathy.methods.improve_llm import ImproveLlm
from empathy.specs.dialogues import (
    DialoguesSpec,
    GroupSplit,
    OfficialSplit,
    PaperSplit,
    RandomSplit,
    SplitSpec,
)
from empathy.specs.examples import METHODS, AnyMethod, ExamplesSpec, MethodSpec
from empathy.specs.judging import AnyJudge, Judge, ReportSpec, Rubric, VerdictsSpec
from empathy.specs.parts import Part, Spec
from empathy.specs.replies import (
    Pooled,
    Recorded,
    RepliesSpec,
    Responder,
    Student,
    Teacher,
)
from empathy.specs.training import (
    Base,
    CheckpointSpec,
    Dpo,
    Full,
    HubBase,
    LogprobsSpec,
    Lora,
    Objective,
    Optimiser,
    RandomBase,
    Sft,
    Tuning,
)

KINDS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (DialoguesSpec, RepliesSpec, ExamplesSpec, CheckpointSpec, LogprobsSpec, VerdictsSpec, ReportSpec)
}

__all__ = [
    "KINDS",
    "METHODS",
    "AnyJudge",
    "AnyMethod",
    "Base",
    "CheckpointSpec",
    "DialoguesSpec",
    "Direct",
    "Dpo",
    "ExamplesSpec",
    "Full",
    "GroupSplit",
    "HubBase",
    "Human",
    "ImproveHuman",
    "ImproveLlm",
    "Judge",
    "LogprobsSpec",
    "Lora",
    "MethodSpec",
    "Objective",
    "OfficialSplit",
    "Optimiser",
    "PaperSplit",
    "Part",
    "Pooled",
    "RandomBase",
    "RandomSplit",
    "Recorded",
    "RepliesSpec",
    "ReportSpec",
    "Responder",
    "Rubric",
    "Sft",
    "Spec",
    "SplitSpec",
    "Student",
    "Teacher",
    "Tuning",
    "VerdictsSpec",
]
