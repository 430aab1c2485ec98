"""Checkpoints and log-probabilities on a group of Ray Train workers that stays up and is fed stage by stage.

The workers read from the store and write to it. The driver puts orders on a board (an actor) as stages become ready;
every worker takes order 0, 1, 2, ... from it and waits there, in no collective, while the next one has not come. A
group that is started again after a loss begins at the first order that has not ended. What resumes within a stage is
what the store holds (`empathy.train.progress`), not what Ray Train keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.profile import Profile
from cluster.progress import Progress, named
from cluster.schedule import Place, Schedule
from cluster.steps.board import BoardActor
from cluster.steps.training_group import TrainingGroup, lost
from cluster.work import Needs, Work
from empathy.stages import Stage, to_json
from empathy.store import FencedError, Store
from empathy.train import check
from empathy.train.placement import Placement
from empathy.words import counted

if TYPE_CHECKING:
    from cluster.executors import Context

Report = Callable[[Stage, int, int], None]
RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # 60 by default: importing torch on a busy machine can take longer
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more; what it saves is saved by `empathy.train.progress`
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
AHEAD = 2
"""Orders on the board that have not ended: the next stage is there before this one is finished."""
NEWS_S = 0.5
STOPPING_S = 5.0


# ---------------------------------------------------------------- the lane


def placement_of(profile: Profile) -> Placement:
    """How the profile says that stages are trained."""
    place = profile.train
    return Placement(
        workers=place.workers,
        micro_batch=place.micro_batch,
        zero_stage=place.zero_stage,
        device="cuda" if place.gpus_per_worker else "cpu",
        gpu_share=place.gpus_per_worker or 1.0,
        gradient_checkpointing=place.gradient_checkpointing,
        share_prefixes=place.shares_prefixes,
        save_every_s=place.save_every_s,
    )


def loop(places: Sequence[Place], work: Work, context: Context) -> None:
    """Make the stages of all bases until none can come any more."""
    train_on(places, work, placement_of(context.profile), context.profile.train.max_failures)


def train(
    stages: Sequence[Stage],
    store_url: str,
    store_options: Mapping[str, Any],
    placement: Placement,
    progress: Report | None = None,
    max_failures: int = 3,
) -> None:
    """Make `stages`, and nothing they stand on, with Ray Train; Ray is up. Raises ValueError with what failed."""
    store, place = Store.open(store_url, **store_options), Place("training")
    check.stages(stages, store, placement)
    schedule = Schedule([s for s in stages if not store.done(s)], lambda stage: place)
    work = Work(schedule, store, Progress(out=lambda line: None, on_units=progress), lambda: Needs(math.inf, math.inf))
    try:
        train_on([place], work, placement, max_failures)
    finally:
        work.release_all()
    if failures := schedule.failures():
        raise ValueError("; ".join(f"{failure.stage!r}: {failure.why}" for failure in failures))


def train_on(places: Sequence[Place], work: Work, placement: Placement, max_failures: int) -> None:
    """Feed one group, and another one after it when it had to go, as long as stages of `places` may come.

    The group stays up while more may become ready, and goes when another lane waits for its room and nothing is ready.
    Raises StoppedError when the run stops.
    """
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    gpus = placement.workers * placement.gpu_share if placement.device == "cuda" else 0
    feed = _Feed(places, work, placement)
    while feed.wait():
        with work.room("training", Needs(placement.workers, gpus)):
            if first := feed.next():
                _serve(feed, first, work, placement, max_failures)


class _Feed:
    """Ready stages, those of the resident base first."""

    def __init__(self, places: Sequence[Place], work: Work, placement: Placement):
        self._places, self._work, self._placement = places, work, placement
        self._base: Place | None = None

    def wait(self) -> bool:
        """Until something is ready; False when nothing will be."""
        work = self._work
        work.wait(lambda: work.schedule.best(self._places) is not None or not work.may_come(self._places))
        return not work.stopping and work.may_come(self._places)

    def next(self) -> Stage | None:
        """A stage that is ready now, leased."""
        while not self._work.stopping:
            same = [self._base] if self._base else []
            place = self._work.schedule.best(same) or self._work.schedule.best(self._places)
            if place is None:
                return None
            for stage in self._work.take(place, 1):
                if self._is_sound(stage):
                    self._base = place
                    return stage
        return None

    def _is_sound(self, stage: Stage) -> bool:
        """Whether it can be trained at all: what cannot is told here, and no group is started for it."""
        try:
            check.stages([stage], self._work.store, self._placement)
        except ValueError as error:
            self._work.failed(stage, error)
            return False
        return True

    def is_over(self) -> bool:
        """Whether a group that has nothing to do should go."""
        return self._work.stopping or self._work.crowded or not self._work.may_come(self._places)

    def refuse(self, why: str) -> None:
        """No group can be had: all that is ready, or will be, fails."""
        self._work.refuse(self._places, why)


# ---------------------------------------------------------------- one group


def _serve(feed: _Feed, first: Stage, work: Work, placement: Placement, max_failures: int) -> None:
    """Start a group and feed it, beginning with `first`, until it is over or ends for good.

    A group that Ray could not keep alive fails the stage it had in hand, unless it finished others before: then a new
    group goes on.
    """
    work.progress.say(
        f"training: {counted(placement.workers, 'worker')} coming up (up to a minute); first is {named(first)}"
    )
    with BoardActor() as board:
        orders = [first]
        board.call("put", _order(first, work))
        group = TrainingGroup(board, work.store, placement, max_failures)
        ended, refused = _feed(feed, orders, work, board, group, _Losses(work.progress, placement, max_failures))
        group.join(STOPPING_S if work.stopping else None)
    left = orders[ended:]
    if left and not ended and refused is None and group.error is not None and not work.stopping:
        work.failed(left.pop(0), _reason(group.error))
    for stage in left:
        work.back(stage)
    if left and not work.stopping and refused is None:
        work.progress.lost("training", f"the workers have ended; new ones go on with {named(left[0])}")
    if refused is not None:
        feed.refuse(refused)


class _Losses:
    """Says what becomes of a group that lost a worker."""

    def __init__(self, progress: Progress, placement: Placement, max_failures: int):
        self._progress, self._placement, self._at_most, self._number = progress, placement, max_failures, 0

    def tell(self, reasons: Mapping[int, str], stage: Stage | None) -> None:
        self._number += 1
        what = lost(reasons, self._placement.workers)
        again = f"all start again (restart {self._number} of at most {self._at_most})"
        if self._number > self._at_most:
            again = f"after {counted(self._at_most, 'restart')} they are given up"
        elif stage is not None:
            again += f"; {named(stage)} goes on from what was saved last, or from its beginning where nothing was"
        self._progress.lost("training", f"{what}; {again}")


def _feed(
    feed: _Feed, orders: list[Stage], work: Work, board: BoardActor, group: TrainingGroup, losses: _Losses
) -> tuple[int, str | None]:
    """Put orders on the board and tell what became of them, until the group ends. How many have ended, and why the
    group gave up, if it did."""
    from ray.exceptions import RayActorError

    ended, closed, by_key = 0, False, {stage.key: stage for stage in orders}
    while not work.stopping:
        up = group.is_alive()  # asked before the news: what comes after the end is read
        try:
            news = board.call("news", ended, NEWS_S)
        except RayActorError:  # the board is lost, and so its workers will end
            break
        for key, told in news.told.items():
            for done, total in told:
                work.progress.units(by_key[key], done, total)
        for error in news.ends:
            _tell(work, orders[ended], error)
            ended += 1
        for reasons in news.losses:
            losses.tell(reasons, orders[ended] if ended < len(orders) else None)
        if not up:
            return ended, news.refused
        while not closed and len(orders) - ended < AHEAD and (stage := feed.next()):
            by_key[stage.key] = stage
            orders.append(stage)
            board.call("put", _order(stage, work))
        if not closed and ended == len(orders) and feed.is_over():
            closed = True
            board.call("close")
    return ended, None


def _order(stage: Stage, work: Work) -> dict[str, Any]:
    return {"stage": to_json([stage]), "epoch": work.epoch(stage)}


def _tell(work: Work, stage: Stage, error: tuple[str, str] | None) -> None:
    if error is None or work.store.done(stage):
        work.done(stage)
    elif error[0] == FencedError.__name__:
        work.back(stage)
    else:
        work.failed(stage, error[1])


def _reason(error: BaseException) -> str:
    """Ray's errors carry whole logs; what went wrong stands at the end, but for a machine without memory: there stands
    a link."""
    if "running low on memory" in str(error):
        return (
            "its machine ran out of memory, and Ray killed the largest of its processes: lower micro_batch in [train], "
            "or end what else runs there"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its training group kept ending: {lines[-1] if lines else type(error).__name__}"
