"""Makes what is missing, inputs first, and loads each model once.

The work is cut into batches of one executor: everything that this process can make, everything that asks a paid
model, everything that trains or scores, everything that generates. A batch takes along every stage whose inputs are
done or in the same batch, so one worker group trains a whole grid and one engine answers for all students of a base.
Ray is started by the first batch that needs it: bad data is refused before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from cluster.executors import EXECUTORS, Context, Executor
from cluster.lease import try_lease
from cluster.session import ray_session
from empathy.stages import Stage, missing

POLL_S = 1.0


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

    A stage that another run is making (its lease is held) is left to it and looked at again. Raises what a stage
    raised: what was finished stays, and the same call goes on from there.
    """
    store, made = context.store, 0
    context.progress.begin(missing(targets, store.done))
    with ExitStack() as ray:
        while pending := missing(targets, store.done):
            now = 0
            for executor in EXECUTORS:
                batch = batch_of(executor, pending)
                now = _make(executor, batch, context, ray) if batch else 0
                if now:
                    break
            made += now
            if not now:
                time.sleep(POLL_S)  # all that could be done is in other hands
    return made


def _make(executor: Executor, batch: Sequence[Stage], context: Context, ray: ExitStack) -> int:
    """Make those of the batch that nobody else is making, under their leases."""
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
            if executor.on_ray:
                ray.enter_context(ray_session(context.profile))
            context.progress.working(free, executor.name)
            executor.run(free, context)
        for stage in free:
            context.progress.finished(stage, context.store.get(stage).counts)
        return len(free)
