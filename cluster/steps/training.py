"""Checkpoints and log-probabilities on groups of Ray Train workers that stay up and are fed stage by stage.

The workers of a group read from the store and write to it. The driver puts orders on its board (an actor) as stages
become ready; every worker takes order 0, 1, 2, ... from it and waits there, in no collective, while the next one has
not come. A group that is started again after a loss begins at the first order that has not ended. What resumes within a
stage is what the store holds (`empathy.train.progress`), not what Ray Train keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.profile import Profile
from cluster.progress import Progress, named
from cluster.schedule import Place, Schedule
from cluster.steps.board import BoardActor
from cluster.steps.feeding import FIRST, LANE, Feed, Pool
from cluster.steps.training_group import TrainingGroup, lost
from cluster.work import Needs, StoppedError, Work
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
        groups=place.groups,
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
    store, place = Store.open(store_url, **store_options), Place(LANE)
    check.stages(stages, store, placement)
    schedule = Schedule([s for s in stages if not store.done(s)], lambda stage: place)
    work = Work(schedule, store, Progress(out=lambda line: None, on_units=progress), lambda: Needs(math.inf, math.inf))
    try:
        train_on([place], work, placement, max_failures)
    finally:
        work.release_all()
    if work.broken is not None:
        raise work.broken
    if failures := schedule.failures():
        raise ValueError("; ".join(f"{failure.stage!r}: {failure.why}" for failure in failures))


def train_on(places: Sequence[Place], work: Work, placement: Placement, max_failures: int) -> None:
    """Feed groups, and others after them when they had to go, as long as stages of `places` may come.

    A group stays up while more may become ready, and goes when another lane waits for its room and nothing is ready.
    Raises StoppedError when the run stops.
    """
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    pool = Pool(places, work, placement)
    beside = [
        work.thread(f"{LANE} {group}", partial(_keep_up, pool, group, max_failures))
        for group in range(FIRST + 1, placement.groups)
    ]
    for thread in beside:
        thread.start()
    try:
        _keep_up(pool, FIRST, max_failures)
    except BaseException as error:  # the others wait for stages that nobody would make
        work.stop(None if isinstance(error, StoppedError) else error)
        raise
    finally:
        for thread in beside:
            thread.join()


def _keep_up(pool: Pool, group: int, max_failures: int) -> None:
    """Have this group up whenever the pool calls for it.

    One that could not be kept up fails nothing while others are. The first one is tried again when it is the only one
    left, and then tells what is wrong; another one is not.
    """
    while pool.called(group):
        of_use = True
        with pool.member(group) as entered:
            feed = Feed(pool, group)
            first = feed.next() if entered and group == FIRST else None
            if entered and (first or group != FIRST):
                of_use = _serve(feed, first, max_failures)
        if not of_use and group != FIRST:
            return
        if not of_use:
            pool.work.wait(lambda: not pool.others(group) or not pool.work.may_come(pool.places))


# ---------------------------------------------------------------- one group


def _serve(feed: Feed, first: Stage | None, max_failures: int) -> bool:
    """Start a group and feed it, beginning with `first`, until it is over or ends for good. Whether it was of use.

    A group that Ray could not keep alive fails the stage it had in hand, unless it finished others before, or others
    are up: then they, or a new group, go on.
    """
    work, placement, is_first = feed.pool.work, feed.pool.placement, feed.group == FIRST
    begins = f"first is {named(first)}" if first else "for what is ready next"
    coming = f"{counted(placement.workers, 'worker')}{'' if is_first else ' more'} coming up (up to a minute)"
    work.progress.say(f"{_name(feed)}: {coming}; {begins}")
    with BoardActor() as board:
        orders = [first] if first else []
        for stage in orders:
            board.call("put", _order(stage, work))
        group = TrainingGroup(board, work.store, placement, max_failures)
        losses = _Losses(work.progress, placement, max_failures, _of(feed))
        ended, refused, was_up = _feed(feed, orders, board, group, losses)
        group.join(None if was_up and not work.stopping else STOPPING_S)
    left, of_use = orders[ended:], bool(ended) or (group.error is None and refused is None)
    alone = is_first and not feed.pool.others(feed.group)
    if left and group.error is not None and alone and not of_use and refused is None and not work.stopping:
        work.failed(left.pop(0), _reason(group.error))
    if left and refused is None and not work.stopping:
        work.progress.lost(LANE, f"the workers{_of(feed)} have ended; others go on with {named(left[0])}")
    for stage in left:
        work.back(stage)
    if refused is not None and alone:
        feed.refuse(refused)
    elif not of_use and not work.stopping and not (alone and group.error is not None):
        why = refused or (_reason(group.error) if group.error is not None else "")
        work.progress.say(f"{_name(feed)}: cannot be kept up, and is left to the others: {why}")
    return of_use


def _name(feed: Feed) -> str:
    return LANE if feed.group == FIRST else f"{LANE}, group {feed.group + 1}"


def _of(feed: Feed) -> str:
    """ " of group 2", where there is more than one."""
    return f" of group {feed.group + 1}" if feed.pool.placement.groups > 1 else ""


class _Losses:
    """Says what becomes of a group that lost a worker; `of` says which group, where there are more."""

    def __init__(self, progress: Progress, placement: Placement, max_failures: int, of: str = ""):
        self._progress, self._placement, self._at_most = progress, placement, max_failures
        self._of, self._number = of, 0

    def tell(self, reasons: Mapping[int, str], stage: Stage | None) -> None:
        self._number += 1
        what = lost(reasons, self._placement.workers) + self._of
        again = f"all start again (restart {self._number} of at most {self._at_most})"
        if self._number > self._at_most:
            again = f"after {counted(self._at_most, 'restart')} they are given up"
        elif stage is not None:
            again += f"; {named(stage)} goes on from what was saved last, or from its beginning where nothing was"
        self._progress.lost(LANE, f"{what}; {again}")


def _feed(
    feed: Feed, orders: list[Stage], board: BoardActor, group: TrainingGroup, losses: _Losses
) -> tuple[int, str | None, bool]:
    """Put orders on the board and tell what became of them, until the group ends. How many have ended, why the group
    gave up, if it did, and whether its workers came up (or were waited for: the first group's)."""
    from ray.exceptions import RayActorError

    work, ended, closed, by_key = feed.pool.work, 0, False, {stage.key: stage for stage in orders}
    is_up = feed.group == FIRST
    while not work.stopping:
        up = group.is_alive()  # asked before the news: what comes after the end is read
        try:
            news = board.call("news", ended, NEWS_S)
        except RayActorError:  # the board is lost, and so its workers will end
            break
        if news.is_up:
            feed.pool.came_up(feed.group)
        is_up |= news.is_up
        for key, told in news.told.items():
            for done, total in told:
                work.progress.units(by_key[key], done, total)
        for error in news.ends:
            _tell(work, orders[ended], error)
            ended += 1
        for reasons in news.losses:
            losses.tell(reasons, orders[ended] if ended < len(orders) else None)
        if not up:
            return ended, news.refused, is_up
        most = _at_once(feed, ended == len(orders)) if is_up and not closed else 0
        while len(orders) - ended < most and (stage := feed.next()):
            by_key[stage.key] = stage
            orders.append(stage)
            board.call("put", _order(stage, work))
        if not closed and ended == len(orders) and feed.is_over():
            closed = True
            board.call("close")
            if not is_up:  # Ray may never have room for it
                break
    return ended, None, is_up


def _at_once(feed: Feed, is_idle: bool) -> int:
    """Orders that a group may have: one ahead of what it does, unless that is for others who do nothing."""
    return 1 if is_idle or not feed.pool.is_more_than_idle_ones_take() else AHEAD


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
