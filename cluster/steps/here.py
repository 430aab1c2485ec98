"""Stages that this process makes: dialogues, recorded and pooled replies, the report, and examples unless they are so
many that Ray pays (`cluster.steps.assembling`)."""

from __future__ import annotations

from collections.abc import Callable

from cluster.profile import Profile
from empathy.specs import Pooled, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store, Writer

Make = Callable[[Stage, Store, Writer], None]
Tell = Callable[[Stage, int, int], None]
DEFAULT = Profile()


def takes(stage: Stage) -> bool:
    """Whether this is a stage for one process."""
    if isinstance(stage.spec, RepliesSpec):
        return isinstance(stage.spec.responder, Recorded | Pooled)
    return stage.kind in ("dialogues", "examples", "report")


def is_sharded(stage: Stage, store: Store, profile: Profile) -> bool:
    """Whether Ray makes it: on CPUs of the cluster, and not in this process."""
    return stage.kind == "examples" and store.get(stage.inputs["dialogues"]).rows > profile.assemble.ray_above_rows


def make(stage: Stage, store: Store, profile: Profile = DEFAULT, tell: Tell = lambda stage, done, of: None) -> None:
    """Make and commit one stage."""
    assert takes(stage), f"{stage!r} is not made here"
    if is_sharded(stage, store, profile):
        from cluster.steps import assembling

        assembling.make(stage, store, profile, tell)
    else:
        _maker(stage)(stage, store, store.writer(stage))


def _maker(stage: Stage) -> Make:
    """Loaded when it is needed: a run that is done already needs none."""
    from empathy import dialogues, examples, replies, report

    if isinstance(stage.spec, RepliesSpec):
        return replies.recorded if isinstance(stage.spec.responder, Recorded) else replies.pooled
    makers: dict[str, Make] = {"dialogues": dialogues.make, "examples": examples.make, "report": report.make}
    return makers[stage.kind]
