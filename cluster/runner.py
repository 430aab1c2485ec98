"""Makes what is missing, inputs first, and loads each model once.

The work is cut into batches of one executor: everything that can run here and now in the driver, everything that asks a paid
model, everything that trains or scores, everything that generates. A batch takes along every stage whose inputs are done or in
the same batch, so one worker group trains a whole grid and one engine answers for all students of a base.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cluster.lease import try_lease
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.steps import asking, generating, here, training
from empathy.stages import Stage, missing
from empathy.store import Store


@dataclass(frozen=True)
class Context:
    """What every executor gets."""

    store: Store
    profile: Profile
    progress: Progress


@dataclass(frozen=True)
class Executor:
    """`takes` a stage or not; `run` makes a batch of stages, inputs first, each committed to the store."""

    name: str
    takes: Callable[[Stage], bool]
    run: Callable[[Sequence[Stage], Context], None]


EXECUTORS = (
    Executor("in this process", here.takes, here.run),
    Executor("asking", asking.takes, asking.run),
    Executor("training and scoring", training.takes, training.run),
    Executor("generating", generating.takes, generating.run),
)


def batch_of(executor: Executor, pending: Sequence[Stage]) -> list[Stage]:
    """The stages of `pending` (inputs first) that `executor` can make without waiting for another executor."""
    waiting = {stage.key for stage in pending}
    batch: list[Stage] = []
    for stage in pending:
        if executor.takes(stage) and not any(s.key in waiting for s in stage.inputs.values()):
            batch.append(stage)
            waiting.discard(stage.key)
    return batch


def run(targets: Sequence[Stage], context: Context) -> int:
    """Make `targets` and what they need. Returns how many stages this call made.

    A stage that another run is making (its lease is held) is left to it and looked at again. Raises what a stage raised: what
    was finished stays, and the same call goes on from there.
    """
    store, made = context.store, 0
    context.progress.begin(len(missing(targets, store.done)))
    while pending := missing(targets, store.done):
        worked = False
        for executor in EXECUTORS:
            if batch := batch_of(executor, pending):
                made_now = _make(executor, batch, context)
                made, worked = made + made_now, made_now > 0
                break
        if not worked:
            time.sleep(1.0)  # all that could be done is in other hands
    return made


def _make(executor: Executor, batch: Sequence[Stage], context: Context) -> int:
    """Make those of the batch that are free, under their leases."""
    with ExitStack() as leases:
        free: list[Stage] = []
        taken: set[str] = set()
        for stage in batch:
            blocked = any(s.key in taken for s in stage.inputs.values())
            lease = None if blocked else try_lease(context.store, stage)
            if lease is None:
                taken.add(stage.key)
                continue
            leases.enter_context(lease)
            if not context.store.done(stage):
                free.append(stage)
        if free:
            context.progress.working(free, executor.name)
            executor.run(free, context)
        for stage in free:
            context.progress.finished(stage, context.store.get(stage).counts)
        return len(free)
