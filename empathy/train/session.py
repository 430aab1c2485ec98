"""One session: checkpoints and scorings, one after the other, in one group of processes.

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
from empathy.store import FencedError, Store
from empathy.train import check
from empathy.train.bench import Bench, Report, base_of
from empathy.train.group import Group, attention_without_plans, join, own_environment
from empathy.train.placement import Placement

STAGES_OWN = (ValueError, ArithmeticError, MemoryError, FencedError, FileExistsError)
"""What another try in the same place would meet again: the stage fails, and the group goes on with the next one. Any
other error ends the process, and whoever started it may start it again."""


class StageFailed(ValueError):
    """What went wrong on another rank."""


def run(stages: Sequence[Stage], store: Store, placement: Placement, progress: Report | None = None) -> None:
    """Make `stages` (kinds checkpoint and logprobs; inputs finished in the store, or earlier in the list).

    Every rank of a torch.distributed group calls this; alone, a process is a group of one. `progress(stage, done,
    total)` is called on rank 0. Raises ValueError, before anything is made, for stages that do not fit together, and
    what the first stage that fails raised.
    """
    check.stages(stages, store, placement)
    with opened(store, placement, progress) as session:
        for stage in stages:
            session.make(stage)


class Session:
    """A group that has joined, with the base that it keeps from stage to stage."""

    def __init__(self, bench: Bench):
        self._bench = bench

    @property
    def group(self) -> Group:
        return self._bench.group

    def make(self, stage: Stage, epoch: int | None = None) -> None:
        """Make a stage whose inputs are finished, under the lease `epoch`. Every rank calls this.

        Raises, on every rank, what is the stage's own fault (`STAGES_OWN`, or StageFailed where another rank met it);
        the session goes on. Raises GroupBroken where ranks came to different ends, or one was lost: it must be started
        anew.
        """
        bench, mine = self._bench, None
        bench.epoch = epoch
        try:
            self._tidy(stage)
            check.stages([stage], bench.store, bench.placement)
            if not bench.group.from_first(bench.group.first and bench.store.done(stage)):
                self._work(stage)
        except STAGES_OWN as error:
            mine = error.with_traceback(None)  # its frames hold models
            bench.drop_base()  # whatever state it was left in
        said = bench.group.agree(_told(mine), bench.placement.timeout_s)
        if mine is not None:
            raise mine
        if said is not None:
            bench.drop_base()
            raise StageFailed(said)

    def _work(self, stage: Stage) -> None:
        from empathy.train import checkpoint, logprobs  # torch reads the environment while it is imported

        if stage.kind == "checkpoint":
            checkpoint.make(stage, self._bench)
        else:
            logprobs.make(stage, self._bench)

    def _tidy(self, stage: Stage) -> None:
        """Before each stage: scratch holds the base that is to be used, and nothing else that grows."""
        bench, base = self._bench, base_of(stage.inputs["checkpoint"] if stage.kind == "logprobs" else stage)
        bench.group.wait()  # nobody reads what is about to go
        if bench.group.first_here:
            for folder in bench.scratch.iterdir():
                if folder.name != f"checkpoint-{base.key}":
                    shutil.rmtree(folder, ignore_errors=True)
        bench.group.wait()


def _told(error: BaseException | None) -> str | None:
    if error is None:
        return None
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def opened(store: Store, placement: Placement, progress: Report | None = None) -> Iterator[Session]:
    """Join the group. Raises ValueError when it is not of the size that the placement says."""
    with own_environment():
        group = join(placement)
        if group.world != placement.workers:
            raise ValueError(
                f"workers = {placement.workers}, but {group.world} processes joined: start as many as the placement "
                "says"
            )
        with attention_without_plans(), _frozen_heap(), _scratch(group, placement) as scratch:
            yield Session(Bench(store, group, placement, scratch, progress or _say_nothing))


def _say_nothing(stage: Stage, done: int, total: int) -> None:
    pass


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """What the libraries hold (half a million objects) is not looked through each time a stage's models are let go."""
    from empathy.train import checkpoint, logprobs  # noqa: F401  after `join`: what they import is what is frozen

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
