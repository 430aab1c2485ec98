"""Examples of a large set: Ray Data shards the parts over processes, each of which takes the steps of
`empathy.examples.Assembler`. The parts are those that one process would make, to the byte.

Ray costs some twenty seconds and a copy of each result; below `ray_above_rows` dialogues one process is done sooner.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from cluster.profile import Profile
from cluster.session import ray_session
from empathy.examples import Assembler, Known, Step, assemble
from empathy.stages import Stage
from empathy.store import Store

BATCH_ROWS = 20_000
"""Dialogues that a worker is handed at once: small parts go several together."""
Tell = Callable[[Stage, int, int], None]
"""(stage, dialogues done, dialogues in all)."""


def _take(batch: Mapping[str, Any], stage: Stage, store: Store, step: Step, known: Any) -> dict[str, list[bytes]]:
    """In a worker: the step, for a batch of parts. A row a part: what it returned, or what a user can mend (Ray would
    lose its type)."""
    import ray

    assembler, found = Assembler(stage, store, store.writer(stage)), ray.get(known)
    made: list[tuple[Any, Exception | None]] = []
    for part in batch["part"]:
        try:
            made.append((assembler.take(step, int(part), found), None))
        except (ValueError, OSError) as error:  # raised again by the driver
            made.append((None, error))
            break
    return {"made": [pickle.dumps(row) for row in made]}


def make(stage: Stage, store: Store, profile: Profile, tell: Tell = lambda stage, done, of: None) -> None:
    """Make and commit an examples stage with `profile.assemble.workers` processes. Raises as `empathy.examples.make`
    does."""
    here = Assembler(stage, store, store.writer(stage))
    with ray_session(profile):
        assemble(here, lambda step, known: _each(step, known, here, stage, store, profile.assemble.workers, tell))


def _each(
    step: Step, known: Known, here: Assembler, stage: Stage, store: Store, workers: int, tell: Tell
) -> Iterator[Any]:
    import ray

    batch = min(max(1, BATCH_ROWS * here.parts // max(1, here.dialogues)), math.ceil(here.parts / workers))
    blocks = math.ceil(here.parts / batch)
    made = ray.data.from_items([{"part": part} for part in range(here.parts)], override_num_blocks=blocks).map_batches(
        partial(_take, stage=stage, store=store, step=step, known=ray.put(known)),
        batch_size=batch,
        batch_format="numpy",
        compute=ray.data.TaskPoolStrategy(size=min(workers, blocks)),
        num_cpus=1,
    )
    for done, row in enumerate(made.iter_rows(), start=1):
        result, error = pickle.loads(row["made"])
        if error is not None:
            raise error
        if step == "write":
            tell(stage, here.dialogues * done // here.parts, here.dialogues)
        yield result
