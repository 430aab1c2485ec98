"""The models of the provider that every run brings, looked for before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.profile import EMBEDDED
from empathy.specs import RepliesSpec, Rubric, Teacher, VerdictsSpec
from empathy.stages import Stage
from serving.rules import judge, teacher


def check_models(stages: Iterable[Stage]) -> None:
    """Raises ValueError naming the field where a stage asks the embedded provider for a model that it has not, or for
    one that does other work: the teacher's rules cannot judge."""
    for stage in stages:
        field, provider, model, there = _asked(stage)
        if provider == EMBEDDED and model != there:
            raise ValueError(
                f"{field} = {model!r}: the provider {EMBEDDED!r} has only {there!r} for this; name that, or a provider "
                "of the profile that serves the other"
            )


def _asked(stage: Stage) -> tuple[str, str, str, str]:
    """The field that names the model, its provider, the model, and the embedded one for such work."""
    spec = stage.spec
    if isinstance(spec, VerdictsSpec):
        rating = (
            "rubric.model" if spec.split == "test" else "ratings.model"
        )  # students' replies, or what they learn from
        field = rating if isinstance(spec.judge, Rubric) else "judge.models"
        return field, spec.judge.provider, spec.judge.model, judge.NAME
    if isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher):
        return "teacher.model", spec.responder.provider, spec.responder.model, teacher.NAME
    return "", "", "", ""
