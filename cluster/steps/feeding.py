"""Which stage a group of training workers makes next, and when another group is worth its start.

Groups train side by side, each with one base resident. The first one comes up for the first stage that is ready. Others
come where there is room that nobody waits for, when more is ready than the groups that are up can take, or when more
will be as soon as what they have in hand is made: then they come up meanwhile. They get no stage before their workers
are there: what Ray gives them may be what others on the cluster, or the first group, wait for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.schedule import Place, State
from cluster.work import Needs, Work
from empathy.stages import Stage
from empathy.train import check
from empathy.train.placement import Placement

FIRST = 0
"""The number of the group that comes up for whatever is ready; the others are 1, 2, ..."""
LANE = "training"
PENDING_S = 90.0
"""So long the first group may wait for its workers before an idle one beside it gives way."""


class Pool:
    """The stages of `places`, and the groups that are up for them."""

    def __init__(self, places: Sequence[Place], work: Work, placement: Placement):
        self.places, self.work, self.placement = places, work, placement
        self._hands: dict[int, list[Stage]] = {}
        """What each group that is up, or comes up, was given."""
        self._since: dict[int, float] = {}
        """When each group whose workers are not yet there was called for."""

    @property
    def needs(self) -> Needs:
        """What one group takes."""
        place = self.placement
        return Needs(place.workers, place.workers * place.gpu_share if place.device == "cuda" else 0)

    def called(self, group: int) -> bool:
        """Wait until `group` is to come up; False when no stage will be left for it."""
        work = self.work
        work.wait(lambda: self._calls_for(group) or not work.may_come(self.places))
        return not work.stopping and work.may_come(self.places)

    @contextmanager
    def member(self, group: int) -> Iterator[bool]:
        """Inside, `group` is one of those that are up, and has its room; False when it is no longer called for.

        The first one waits for room as long as something is ready; the others take what is free.
        """
        work, changed = self.work, self.work.schedule.changed

        def wanted() -> bool:
            return group == FIRST and work.schedule.best(self.places) is not None

        with work.room(LANE, self.needs, wanted) as entered:
            with changed:
                if entered:
                    self._hands[group], self._since[group] = [], time.monotonic()
            try:
                yield entered
            finally:
                with changed:
                    self._hands.pop(group, None)
                    self._since.pop(group, None)
                    changed.notify_all()

    def came_up(self, group: int) -> None:
        """Its workers are there."""
        with self.work.schedule.changed:
            self._since.pop(group, None)

    def others(self, group: int) -> bool:
        """Whether other groups are up, or come up."""
        with self.work.schedule.changed:
            return bool(self._hands.keys() - {group})

    def is_first_stuck(self) -> bool:
        """Whether the first group has waited long for its workers: Ray may have given others what it needs."""
        return time.monotonic() - self._since.get(FIRST, math.inf) > PENDING_S

    def _calls_for(self, group: int) -> bool:
        if group == FIRST and not self._hands.keys() - self._since.keys():  # there are no workers yet
            return self.work.schedule.best(self.places) is not None
        is_work = self.is_more_than_idle_ones_take() or self._are_coming(len(self._hands) + 1)
        has_room = group == FIRST or (not self.is_first_stuck() and self.work.has_room_beside(LANE, self.needs))
        return is_work and has_room

    def _are_coming(self, number: int) -> bool:
        """Whether so many stages wait for nothing but what is in hand."""
        running = [stage for stages in self._hands.values() for stage in self._running(stages)]
        return sum(self.work.schedule.frees(stage, number) for stage in running) >= number

    def _running(self, stages: list[Stage]) -> list[Stage]:
        stages[:] = [stage for stage in stages if self.work.schedule.state(stage) is State.RUNNING]
        return stages

    def is_more_than_idle_ones_take(self) -> bool:
        """Whether more stages are ready than groups of the pool have nothing in hand."""
        schedule = self.work.schedule
        with schedule.changed:
            idle = sum(not self._running(stages) for stages in self._hands.values())
            return sum(schedule.count([State.READY], place) for place in self.places) > idle

    def give(self, group: int, stage: Stage) -> None:
        with self.work.schedule.changed:
            self._hands[group].append(stage)
            self.work.schedule.changed.notify_all()  # what it will free may call for another group


class Feed:
    """Ready stages for one group, those of its resident base first."""

    def __init__(self, pool: Pool, group: int):
        self.pool, self.group = pool, group
        self._base: Place | None = None

    def next(self) -> Stage | None:
        """A stage that is ready now, leased."""
        work = self.pool.work
        while not work.stopping:
            same = [self._base] if self._base else []
            place = work.schedule.best(same) or work.schedule.best(self.pool.places)
            if place is None:
                return None
            for stage in work.take(place, 1):
                if self._is_sound(stage):
                    self._base = place
                    self.pool.give(self.group, stage)
                    return stage
        return None

    def _is_sound(self, stage: Stage) -> bool:
        """Whether it can be trained at all: what cannot is told here, and no group is started for it."""
        try:
            check.stages([stage], self.pool.work.store, self.pool.placement)
        except ValueError as error:
            self.pool.work.failed(stage, error)
            return False
        return True

    def is_over(self) -> bool:
        """Whether a group that has nothing to do should go."""
        work = self.pool.work
        gives_way = self.group != FIRST and self.pool.is_first_stuck()
        return work.stopping or work.crowded or gives_way or not work.may_come(self.pool.places)

    def refuse(self, why: str) -> None:
        """No group can be had: all that is ready, or will be, fails."""
        self.pool.work.refuse(self.pool.places, why)
