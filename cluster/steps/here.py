"""Stages that are small enough for one process: dialogues, recorded and pooled replies, examples, the report."""

from __future__ import annotations

from collections.abc import Callable

from empathy import dialogues, examples, replies, report
from empathy.specs import Pooled, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store, Writer

Make = Callable[[Stage, Store, Writer], None]


_REPLIES: dict[type, Make] = {Recorded: replies.recorded, Pooled: replies.pooled}


def _maker(stage: Stage) -> Make | None:
    if isinstance(stage.spec, RepliesSpec):
        return _REPLIES.get(type(stage.spec.responder))
    makers: dict[str, Make] = {"dialogues": dialogues.make, "examples": examples.make, "report": report.make}
    return makers.get(stage.kind)


def takes(stage: Stage) -> bool:
    """Whether this is a stage for one process."""
    return _maker(stage) is not None


def make(stage: Stage, store: Store) -> None:
    """Make and commit one stage."""
    maker = _maker(stage)
    assert maker is not None, f"{stage!r} is not made here"
    maker(stage, store, store.writer(stage))
