"""Makes what is missing: whatever is ready at once, each model loaded once.

Sources are read first: bad data ends the run before anybody is asked and Ray is started. Then every lane of
`cluster.executors` works on its own thread, and this one waits, looks again at what other runs are making, and ends it
all. A stage that fails stops its own branch; the rest is finished, and `Outcome` says what is not, and why.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster import gpus
from cluster.executors import LANES, Context, Lane, place_of, sort_of
from cluster.live import live
from cluster.providers import asked
from cluster.schedule import OPEN, Failure, Place, Schedule
from cluster.session import ray_session, starting
from cluster.work import Needs, Work
from empathy import doors
from empathy.stages import Stage, missing, walk
from empathy.store import Store

if TYPE_CHECKING:
    from serving.rates import Route

__all__ = ["Context", "Failure", "Outcome", "run", "to_make"]

POLL_S = 2.0
"""How often stages that other runs are making, calls and dollars are looked at."""
ENDING_S = 20.0
"""How long lanes are given to end when the run is broken off; replies on their way are kept if they come by then."""
CLOSING_S = 300.0
"""How long they are given when all is done: groups and engines are taken down."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `made`: stages made by this call. `open`: stages that are not made, failed ones included."""

    made: int
    failures: tuple[Failure, ...] = ()
    open: int = 0


def to_make(targets: Sequence[Stage], store: Store) -> list[Stage]:
    """The stages that are missing, inputs first. A few listings, however many stages there are."""
    finished = store.finished(walk(targets))
    return missing(targets, lambda stage: stage.key in finished)


def run(
    targets: Sequence[Stage], context: Context, lanes: Sequence[Lane] = LANES, whole: Sequence[Stage] = ()
) -> Outcome:
    """Make `targets` and what they need. `whole` is what they are a part of: what is lacking there is raised as well.

    A stage that another run is making (its lease is held) is left to it and looked at again. Raises what is wrong with
    a source, or lacks in it (`empathy.doors`), before anybody is asked, and KeyboardInterrupt when the process is told
    to end (SIGINT, SIGTERM); what was finished stays, and the same call goes on from there.
    """
    pending = to_make(targets, context.store)
    context.progress.begin(pending, lambda stage: sort_of(stage, lanes), _asking(pending, context, lanes))
    if not pending:
        return Outcome(0)
    gpus.check(context.profile, {place_of(stage, lanes).lane for stage in pending})
    context.progress.schedule = schedule = Schedule(pending, lambda stage: place_of(stage, lanes))
    work = Work(schedule, context.store, context.progress, _total)
    with live(context.progress):
        _Run(work, context, lanes, pending, to_make(whole, context.store)).make()
    return Outcome(work.made, tuple(schedule.failures()), schedule.unmade)


def _asking(pending: Sequence[Stage], context: Context, lanes: Sequence[Lane]) -> dict[str, Route | None]:
    """Threads that send requests: to which (provider, model), None where that sends no bill."""
    routes = {sort_of(stage, lanes).thread: route for stage in pending if (route := asked(stage)) is not None}
    quota = context.quota
    return {thread: None if quota is not None and quota.is_free(*route) else route for thread, route in routes.items()}


class _Run:
    """One call of `run`."""

    def __init__(
        self, work: Work, context: Context, lanes: Sequence[Lane], pending: Sequence[Stage], later: Sequence[Stage]
    ):
        self.work, self.context, self.lanes, self.pending, self.later = work, context, lanes, pending, later
        self.sources = [stage for stage in pending if stage.kind == "dialogues"]
        self.threads: list[threading.Thread] = []
        self.started: set[str] = set()

    def make(self) -> None:
        with ExitStack() as up:
            up.enter_context(ended_by_signals())
            up.callback(self._end)
            reading = {place_of(stage, self.lanes).lane for stage in self.sources}
            self._start(lambda lane: lane.name in reading)
            self._read_sources()
            doors.check(self.pending, doors.in_store(self.context.store), self.later)
            self._start(lambda lane: not lane.on_ray(self.context))
            if self._ray_is_due():
                self.context.progress.say(starting(self.context.profile))
                up.enter_context(ray_session(self.context.profile, self.context.progress.say))
                up.enter_context(ended_by_signals())  # Ray has set a handler of its own
                up.callback(self._end)  # before Ray is taken down
                self._start(lambda lane: lane.on_ray(self.context))
            self._follow()
        if self.work.broken is not None:
            raise self.work.broken

    def _start(self, due: Callable[[Lane], bool]) -> None:
        """A thread for each lane that is `due`, not yet started and has anything to make, or for each of its
        models."""
        places: dict[str, list[Place]] = defaultdict(list)
        for place in sorted(self.work.schedule.places(), key=lambda p: p.model):
            places[place.lane].append(place)
        for lane in self.lanes:
            if lane.name in self.started or not due(lane) or not places[lane.name]:
                continue
            self.started.add(lane.name)
            groups = [[p] for p in places[lane.name]] if lane.a_thread_a_model else [places[lane.name]]
            for group in groups:
                self._thread(lane, group)

    def _thread(self, lane: Lane, places: Sequence[Place]) -> None:
        thread = self.work.thread(lane.name, lambda: lane.loop(places, self.work, self.context))
        self.threads.append(thread)
        thread.start()

    def _read_sources(self) -> None:
        self._follow(lambda: all(self.work.schedule.state(s) not in OPEN for s in self.sources))
        for stage in self.sources:
            if stage.key in self.work.errors:
                raise self.work.errors[stage.key]

    def _ray_is_due(self) -> bool:
        """Waits until something that needs Ray is ready, or nothing will be: a run that fails at its sets once more
        should not take half a minute for it."""
        schedule, on_ray = self.work.schedule, {lane.name for lane in self.lanes if lane.on_ray(self.context)}
        places = [place for place in schedule.places() if place.lane in on_ray]
        self._follow(lambda: schedule.best(places) is not None or not self.work.may_come(places))
        return not self.work.stopping and self.work.may_come(places)

    def _follow(self, true: Any = None) -> None:
        """Until `true()`, by default until every stage has ended."""
        until = true or (lambda: self.work.schedule.ended)
        while not self.work.wait(until, POLL_S) and not self.work.stopping:
            self.work.look_again()
            if self.context.quota is not None:
                self.context.progress.seen(self.context.quota.look())

    def _end(self) -> None:
        """No thread works on, and no lease is held."""
        if not self.work.schedule.ended:
            self.work.stop()
        deadline_s = time.monotonic() + (ENDING_S if self.work.stopping else CLOSING_S)
        for thread in self.threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self.work.release_all()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. Only the main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _total() -> Needs:
    """What Ray has now."""
    import ray

    there: dict[str, float] = ray.cluster_resources()
    return Needs(there.get("CPU", 0.0), there.get("GPU", 0.0))
