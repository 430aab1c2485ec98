"""One session: every checkpoint and every scoring of an experiment, one after the other, in one group of processes.

Imports, start-up and the base model are paid for once. Each stage that is finished in the store is passed over, so a
session that was broken off is simply started again.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from empathy.stages import Stage
from empathy.store import Store
from empathy.train import check
from empathy.train.bench import Bench, Report
from empathy.train.group import Group, join, own_environment
from empathy.train.placement import Placement


def run(stages: Sequence[Stage], store: Store, placement: Placement, progress: Report | None = None) -> None:
    """Make `stages` (kinds checkpoint and logprobs; inputs finished in the store, or earlier in the list).

    Every rank of a torch.distributed group calls this; alone, a process is a group of one. `progress(stage, done,
    total)` is called on rank 0. Raises ValueError, before anything is made, for stages that do not fit together.
    """
    check.stages(stages, store, placement)
    with own_environment():
        _run(stages, store, placement, progress)


def _run(stages: Sequence[Stage], store: Store, placement: Placement, progress: Report | None) -> None:
    group = join(placement)
    if group.world != placement.workers:
        raise ValueError(
            f"workers = {placement.workers}, but {group.world} processes joined: start as many as the placement says"
        )
    from empathy.train import checkpoint, logprobs  # after `join`: torch reads the environment while it is imported

    with _frozen_heap(), _scratch(group, placement) as scratch:
        bench = Bench(store, group, placement, scratch, progress or _say_nothing)
        for stage in stages:
            if not group.from_first(group.first and store.done(stage)):
                (checkpoint if stage.kind == "checkpoint" else logprobs).make(stage, bench)
            group.wait()


def _say_nothing(stage: Stage, done: int, total: int) -> None:
    pass


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """What the libraries hold (half a million objects) is not looked through each time a stage's models are let go."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _scratch(group: Group, placement: Placement) -> Iterator[Path]:
    """A folder of the same name on every machine of the group."""
    if group.first and placement.local_dir:
        Path(placement.local_dir).mkdir(parents=True, exist_ok=True)
    folder = Path(
        group.from_first(tempfile.mkdtemp(prefix="empathy-train-", dir=placement.local_dir) if group.first else "")
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if group.first_here:
            shutil.rmtree(folder, ignore_errors=True)
