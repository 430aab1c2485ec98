"""Do the engines of a profile hold what an experiment asks of them? Told before anything is made."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.profile import Profile
from empathy.specs import RepliesSpec, Student
from empathy.stages import Stage


def check_room(stages: Iterable[Stage], profile: Profile) -> None:
    """Raises ValueError when students' replies may be so long that the profile's engine takes no prompt beside them:
    else every training would be made before the engine says so."""
    for stage in stages:
        if isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Student):
            tokens, most = stage.spec.responder.max_tokens, profile.engine.max_model_len
            if tokens >= most:
                raise ValueError(
                    f"generate.max_tokens = {tokens}: leaves no prompt any room in max_model_len = {most} of the "
                    "profile's [engine], which holds both; lower the one or raise the other"
                )
