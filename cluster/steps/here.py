"""Stages that are small enough for one process: dialogues, recorded replies, examples, the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from empathy import dialogues, examples, replies, report
from empathy.specs import Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store, Writer

if TYPE_CHECKING:
    from cluster.runner import Context

Make = Callable[[Stage, Store, Writer], None]


def _maker(stage: Stage) -> Make | None:
    if isinstance(stage.spec, RepliesSpec):
        return replies.recorded if isinstance(stage.spec.responder, Recorded) else None
    makers: dict[str, Make] = {"dialogues": dialogues.make, "examples": examples.make, "report": report.write}
    return makers.get(stage.kind)


def takes(stage: Stage) -> bool:
    return _maker(stage) is not None


def run(batch: Sequence[Stage], context: Context) -> None:
    """Make the batch, one after another."""
    for stage in batch:
        make = _maker(stage)
        assert make is not None, f"{stage!r} is not made here"
        writer = context.store.writer(stage)
        make(stage, context.store, writer)
        if not context.store.done(stage):
            writer.commit()
        context.progress.finished(stage, context.store.get(stage).counts)
