"""How long what is left of a run will take, from what this run did of late.

Work is counted in stages' worth: a training at step 30 of 120 is a quarter of one. A `Sort` is stages that take about
as long as each other; its pace is seconds a stage's worth, over its last `RECENT_S` seconds of work. A lane works on
one thing at a time, so the time between two signs of life belongs to what gave the second. What is no work is not
counted: bringing up workers or an engine, waiting for inputs, the time that a killed worker cost, and what an earlier
run had done already.

What cannot be told is None, never a number.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

RECENT_S = 300.0
BUCKET_S = 1.0
"""Shorter spans are added up: a pace never holds more than some hundreds."""
LEAST_WORTH, LEAST_S = 0.05, 30.0
"""A pace is told once so much of a stage is done, or something in so much time."""
LEAST_LEFT_S = 1.0
"""Less is no estimate where more is unknown."""
SILENT_S = 60.0
"""Who has not been heard of for so long, and twice as long as a stage takes, may be at anything."""
HERE = "here"
"""The thread of this process: what it makes takes seconds, and makes no estimate unknown."""


@dataclass(frozen=True)
class Sort:
    """`thread`: the lane's, which works on one thing at a time. `what`: e.g. "checkpoint dpo". `model`: what must be up
    to make it."""

    thread: str
    what: str
    model: str = ""


@dataclass(frozen=True)
class Left:
    """Seconds yet; `at_least` where some of what is left is not in them. `without`: work that nothing is known of."""

    seconds: float
    at_least: bool
    without: tuple[str, ...] = ()


class Pace:
    """Seconds a stage's worth of work, of late."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque()
        self._seconds = self._worth = 0.0

    def add(self, seconds: float, worth: float) -> None:
        if self._spans and self._spans[-1][0] < BUCKET_S:
            last = self._spans.pop()
            self._spans.append((last[0] + seconds, last[1] + worth))
        else:
            self._spans.append((seconds, worth))
        self._seconds, self._worth = self._seconds + seconds, self._worth + worth
        while self._seconds - self._spans[0][0] >= RECENT_S:
            seconds, worth = self._spans.popleft()
            self._seconds, self._worth = self._seconds - seconds, self._worth - worth

    @property
    def seconds(self) -> float | None:
        enough = self._worth >= LEAST_WORTH or (self._seconds >= LEAST_S and self._worth > 1e-9)
        return self._seconds / self._worth if enough else None


class _Work:
    """One stage in work: how far it is (None: not heard of yet), since when, when more of it was done, its own pace."""

    def __init__(self) -> None:
        self.share: float | None = None
        self.first_s = 0.0
        self.last_s: float | None = None
        self.pace = Pace()


class Estimate:
    """Of one run. `now` is any monotonic clock, in seconds. Not thread-safe."""

    def __init__(self, sorts: Mapping[str, Sort] | None = None):
        """`sorts`: of every stage that is to be made, by key."""
        self._sorts = dict(sorts or {})
        self._to_make = Counter(self._sorts.values())
        self._paces: dict[Sort, Pace] = defaultdict(Pace)
        self._at_work: dict[str, dict[str, _Work]] = defaultdict(dict)  # by thread, by key
        self._heard_s: dict[str, float] = {}  # by thread: until when its time is counted
        self._worth: dict[str, float] = defaultdict(float)  # by thread: done in this run, in stages' worth

    # ---- what happens

    def taken(self, key: str, now: float) -> None:
        """It is in work, or the next to be."""
        if sort := self._sorts.get(key):
            self._at_work[sort.thread].setdefault(key, _Work())
            if sort.thread == HERE:
                self._heard_s.setdefault(HERE, now)

    def at(self, key: str, share: float, now: float) -> None:
        """So much of it is done. Less than before: work was lost, and the time that it took is forgotten."""
        if (sort := self._sorts.get(key)) is None:
            return
        work = self._at_work[sort.thread].setdefault(key, _Work())
        if work.share is None:
            work.first_s = now
        elif share < work.share:
            work.pace = Pace()
            self.rests(sort.thread)
        elif share > work.share:
            self._count(sort, share - work.share, now)
            if work.last_s is not None:
                work.pace.add(now - work.last_s, share - work.share)
            work.last_s = now
        work.share = share

    def _count(self, sort: Sort, worth: float, now: float) -> None:
        """A thread's clock begins with the first work that is done: what was there before may be its coming up."""
        since = self._heard_s.get(sort.thread)
        self._heard_s[sort.thread] = now
        self._worth[sort.thread] += worth
        if since is not None:
            self._paces[sort].add(now - since, worth)

    def ended(self, key: str, now: float) -> float | None:
        """It is made. How long that took since it was first heard of; None where it never was, or others made it."""
        if (sort := self._sorts.pop(key, None)) is None:
            return None
        self._to_make[sort] -= 1
        work = self._at_work[sort.thread].pop(key, None)
        if work is not None:
            self._count(sort, 1.0 - (work.share or 0.0), now)
        self._rest_if_idle(sort.thread)
        return None if work is None or work.share is None else now - work.first_s

    def stopped(self, key: str) -> None:
        """It is in work no more, and not made."""
        if sort := self._sorts.get(key):
            self._at_work[sort.thread].pop(key, None)
            self._rest_if_idle(sort.thread)

    def given_up(self, key: str) -> None:
        """It will not be made in this run."""
        self.stopped(key)
        if sort := self._sorts.pop(key, None):
            self._to_make[sort] -= 1

    def rests(self, thread: str) -> None:
        """What works there is gone and comes again: until it has done something no time is counted."""
        self._heard_s.pop(thread, None)
        for work in self._at_work[thread].values():
            work.last_s = None

    def _rest_if_idle(self, thread: str) -> None:
        if not self._at_work[thread]:
            self.rests(thread)

    # ---- what follows

    def share(self, key: str) -> float | None:
        """How much of a stage in work is done; None when that is not known."""
        sort = self._sorts.get(key)
        work = self._at_work[sort.thread].get(key) if sort else None
        return work.share if work else None

    def of_stage(self, key: str, now: float) -> float | None:
        """Seconds that a stage in work takes yet, by its own pace."""
        sort = self._sorts.get(key)
        work = self._at_work[sort.thread].get(key) if sort else None
        if work is None or work.share is None or work.last_s is None or now - work.last_s > SILENT_S:
            return None
        pace = work.pace.seconds
        return pace * (1.0 - work.share) if pace else None

    def left(self, now: float) -> Left | None:
        """Of the whole run, as if sorts were made one after another (side by side it is sooner). None while nothing is
        known of what is left, and while somebody is silent."""
        seconds, without = 0.0, dict[str, None]()
        for sort, number in self._to_make.items():
            pace = self._pace(sort)
            if pace is not None:
                seconds += pace * (number - self._begun(sort))
            elif number and sort.thread != HERE:
                without[sort.what] = None
        at_least = bool(without) or self._is_coming_up()
        if (at_least and seconds < LEAST_LEFT_S) or self._is_silent(now):
            return None
        return Left(seconds, at_least, tuple(without))

    def _pace(self, sort: Sort) -> float | None:
        """Its own; where there is none yet, that of the same work with another model."""
        if (pace := self._paces[sort].seconds if sort in self._paces else None) is not None:
            return pace
        others = (pace.seconds for other, pace in self._paces.items() if other.what == sort.what)
        found = [seconds for seconds in others if seconds is not None]
        return sum(found) / len(found) if found else None

    def _begun(self, sort: Sort) -> float:
        at_work = self._at_work.get(sort.thread, {})
        return sum(work.share or 0.0 for key, work in at_work.items() if self._sorts.get(key) == sort)

    def _is_silent(self, now: float) -> bool:
        for thread, at_work in self._at_work.items():
            if thread == HERE or not at_work or thread not in self._heard_s:
                continue
            paces = [self._pace(self._sorts[key]) or 0.0 for key in at_work if key in self._sorts]
            if now - self._heard_s[thread] > max(SILENT_S, 2 * max(paces, default=0.0)):
                return True
        return False

    def _is_coming_up(self) -> bool:
        return any(at_work and thread not in self._heard_s for thread, at_work in self._at_work.items())

    def done_and_left(self, thread: str) -> tuple[float, float]:
        """Stages' worth that this run made on a thread, and that it has yet to make there."""
        sorts = [sort for sort in self._to_make if sort.thread == thread]
        return self._worth[thread], sum(self._to_make[sort] - self._begun(sort) for sort in sorts)
