"""What a lane works with: stages that are ready, each under its lease, the room they need, and whom to tell of the end.

while stages := work.next([place]):      waits; [] when nothing more will come
    with work.room("asking", Needs(cpus=1)):
        work.make(stages, make)
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from cluster.lease import Lease, is_free, try_lease
from cluster.progress import Progress
from cluster.schedule import OPEN, Place, Schedule, State
from empathy.stages import LastingError, Stage
from empathy.store import FencedError, Store
from serving.budget import BudgetSpent
from serving.providers import ProviderDown, ProviderStopped

LOOKS = 64
"""Stages in other hands that are looked at again at a time: what other runs hold is never polled all at once."""
MENDABLE = (ValueError, OSError, ArithmeticError, MemoryError)
"""Errors whose text says what there is to say; every other one is ours, and its traceback is shown."""
Make = Callable[[Sequence[Stage]], None]


@dataclass(frozen=True)
class Needs:
    """What a lane takes of the cluster while it is up."""

    cpus: float = 0
    gpus: float = 0

    def __add__(self, other: Needs) -> Needs:
        return Needs(self.cpus + other.cpus, self.gpus + other.gpus)

    def fits(self, total: Needs) -> bool:
        return self.cpus <= total.cpus and self.gpus <= total.gpus


class StoppedError(RuntimeError):
    """The run ends: whatever a lane waited for will not come."""


class Work:
    """The schedule of one run, with the leases on what is running and the room that lanes share."""

    def __init__(self, schedule: Schedule, store: Store, progress: Progress, total: Callable[[], Needs]):
        self.schedule, self.store, self.progress = schedule, store, progress
        self.made = 0
        self.stopping = False
        self.broken: BaseException | None = None
        """What ended a lane itself: the run raises it."""
        self.errors: dict[str, BaseException] = {}
        """What stages failed with, by key."""
        self._total, self._up, self._knocking = total, list[tuple[str, Needs]](), 0
        self._leases: dict[str, Lease] = {}
        self._cancels: dict[str, Callable[[], None]] = {}
        self._looked: dict[str, float] = {}

    # ---- stages

    def wait(self, true: Callable[[], bool], at_most_s: float | None = None) -> bool:
        """Until `true()` (asked after each change), or the run stops, or the time is up. The last answer."""
        with self.schedule.changed:
            self.schedule.changed.wait_for(lambda: self.stopping or true(), at_most_s)
            return not self.stopping and true()

    def next(
        self, places: Sequence[Place], at_most: int = 64, unless: Callable[[], bool] = lambda: False
    ) -> list[Stage]:
        """Stages to make now, leased, all of one place: the most urgent of `places`. Waits for them; [] at the end.

        Also [] when none is ready and `unless()`: there is something better to do than to wait for them.
        """

        def over() -> bool:
            return not self.may_come(places) or unless()

        while True:
            self.wait(lambda: self.schedule.best(places) is not None or over())
            place = None if self.stopping else self.schedule.best(places)
            if place is None:
                return []
            if taken := self.take(place, at_most):
                return taken

    def may_come(self, places: Sequence[Place]) -> bool:
        """Whether any stage of `places` is still to be made, in whatever state it is now."""
        return any(self.schedule.count(OPEN, place) for place in places)

    def take(self, place: Place, at_most: int) -> list[Stage]:
        """Up to `at_most` ready stages of `place`, each leased; what others make, or have made, is passed over."""
        taken: list[Stage] = []
        while len(taken) < at_most and not self.stopping and (stage := self.schedule.take(place)) is not None:
            if self._is_ours(stage):
                taken.append(stage)
        return taken

    def _is_ours(self, stage: Stage) -> bool:
        lease = None if self.store.done(stage) else try_lease(self.store, stage)
        if lease is None and not self.store.done(stage):
            self._hold(stage)
            return False
        if lease is not None and not self.store.done(stage):  # who held it before may have ended a moment ago
            self._leases[stage.key] = lease
            self.progress.taken(stage)
            return True
        if lease is not None:
            lease.release()
        self._ended(stage)
        return False

    def epoch(self, stage: Stage) -> int:
        """The fencing number that this run writes `stage` under."""
        return self._leases[stage.key].epoch

    def done(self, stage: Stage) -> None:
        """It is committed."""
        if (lease := self._leases.pop(stage.key, None)) is not None:
            lease.drop()
            self.made += 1
        self._ended(stage, self.store.get(stage).counts)

    def _ended(self, stage: Stage, counts: Mapping[str, int] = MappingProxyType({})) -> None:
        self.schedule.done(stage)
        self.progress.finished(stage, counts)

    def failed(self, stage: Stage, error: BaseException | str) -> None:
        """It cannot be made. What stands on it is not tried."""
        self._release(stage)
        if isinstance(error, BaseException):
            self.errors[stage.key] = error
        if isinstance(error, BaseException) and not isinstance(error, MENDABLE):
            self.progress.say("".join(traceback.format_exception(error)))
        why = error if isinstance(error, str) else str(error) if isinstance(error, MENDABLE) else _named(error)
        lasting = isinstance(error, LastingError)
        self.progress.failed(stage, why, self.schedule.failed(stage, why, lasting=lasting))

    def leave(self, stage: Stage, why: str) -> None:
        """It is left unmade, and nothing is wrong with it."""
        self._release(stage)
        self.progress.left(stage, why, self.schedule.failed(stage, why, left=True))

    def back(self, stage: Stage) -> None:
        """It was not made: to be made again, by us, or by who took over its lease."""
        lost = (lease := self._leases.get(stage.key)) is not None and lease.lost
        self._release(stage)
        if lost:
            self._hold(stage)
        else:
            self.progress.stopped(stage)
            self.schedule.back(stage)

    def _hold(self, stage: Stage) -> None:
        self.progress.held(stage)
        self.schedule.hold(stage)

    def _release(self, stage: Stage) -> None:
        lease = self._leases.pop(stage.key, None)
        if lease is not None:
            lease.release()

    def release_all(self) -> None:
        """At the end: nobody waits for what we no longer make."""
        for key in list(self._leases):
            self._leases.pop(key).release()

    def look_again(self) -> None:
        """Whether stages in other hands are made by now, or free: a few at a time, those first that waited longest."""
        held = sorted(self.schedule.held(), key=lambda s: self._looked.get(s.key, 0.0))[:LOOKS]
        for stage in held:
            self._looked[stage.key] = time.monotonic()
            if self.store.done(stage):
                self._ended(stage)
            elif is_free(self.store, stage):
                self.schedule.back(stage)

    # ---- making

    def make(self, batch: Sequence[Stage], make: Make) -> None:
        """Make a batch that `work.next` gave, and say of each stage what became of it.

        `make` may tell `done` or `failed` of single stages as they end. When it raises, what it has not told of is made
        again, one by one, so that one stage's error is its own; a provider that is down ends them all. What a spent
        budget leaves has not failed: the next run makes it.
        """
        try:
            make(batch)
        except FencedError:
            for stage in self._running(batch):
                self._hold(stage)
                self._release(stage)
        except BudgetSpent as error:
            for stage in self._running(batch):
                self.leave(stage, str(error))
        except (ProviderDown, ProviderStopped) as error:
            for stage in self._running(batch):
                self.failed(stage, error)
        except Exception as error:
            if self.stopping:
                raise
            self._one_by_one(batch, make, error)
        for stage in self._running(batch):
            self.done(stage)

    def _one_by_one(self, batch: Sequence[Stage], make: Make, error: Exception) -> None:
        left = self._running(batch)
        if len(batch) == 1:
            for stage in left:
                self.failed(stage, error)
            return
        if left:
            self.progress.say(
                f"a batch of {len(batch)} stages broke ({_named(error)}); what is left of it is made one by one"
            )
        for stage in left:
            self.make([stage], make)

    def _running(self, batch: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in batch if self.schedule.state(stage) is State.RUNNING]

    def refuse(self, places: Sequence[Place], error: BaseException | str, left: bool = False) -> None:
        """Nothing at `places` can be made any more: what is ready there, or becomes ready, ends with this reason."""
        while stages := self.next(places):
            for stage in stages:
                if left:
                    self.leave(stage, str(error))
                else:
                    self.failed(stage, error)

    # ---- room

    @contextmanager
    def room(self, who: str, needs: Needs, wanted: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """Inside, `needs` are set aside for `who`. Waits until they are free; whoever is alone is let in.

        False, and nothing is set aside, when they are not free and no longer `wanted`. Raises StoppedError when the run
        stops meanwhile.
        """
        with self.schedule.changed:
            self._knocking += 1
            self.schedule.changed.notify_all()
            try:
                if not self.wait(lambda: self._fits(needs) or not wanted()):
                    raise StoppedError
            finally:
                self._knocking -= 1
            if entered := self._fits(needs):
                self._up.append((who, needs))
            self.schedule.changed.notify_all()  # one less waits: somebody else may come up beside it
        try:
            yield entered
        finally:
            with self.schedule.changed:
                if entered:
                    self._up.remove((who, needs))
                self.schedule.changed.notify_all()

    def _fits(self, needs: Needs) -> bool:
        taken = [n for _, n in self._up if n != Needs()]
        return not taken or needs == Needs() or sum(taken, needs).fits(self._total())

    def has_room_beside(self, who: str, needs: Needs) -> bool:
        """Whether one of `who` is up, and `needs` fit beside all that is up, and nobody waits for room."""
        with self.schedule.changed:
            return any(name == who for name, _ in self._up) and not self.crowded and self._fits(needs)

    @property
    def crowded(self) -> bool:
        """Whether a lane waits for room: whoever is up and idle goes."""
        return self._knocking > 0

    # ---- the end

    @contextmanager
    def cancelled_by(self, who: str, cancel: Callable[[], None]) -> Iterator[None]:
        """While inside, `stop` calls `cancel`: it must make the block end soon. Raises StoppedError when the run stops
        already."""
        self._cancels[who] = cancel
        try:
            if self.stopping:
                raise StoppedError
            yield
        finally:
            self._cancels.pop(who, None)

    def stop(self, error: BaseException | None = None) -> None:
        """End the run: nothing more is taken, what can be cancelled is."""
        with self.schedule.changed:
            if self.broken is None:
                self.broken = error
            self.stopping = True
            self.schedule.changed.notify_all()
        for cancel in list(self._cancels.values()):
            try:
                cancel()
            except Exception as failed:  # noqa: BLE001  the others must be ended all the same
                print(f"while ending: {_named(failed)}", file=sys.stderr)

    def thread(self, name: str, loop: Callable[[], None]) -> threading.Thread:
        """A lane's thread; what it raises ends the run."""

        def run() -> None:
            try:
                loop()
            except StoppedError:
                pass
            except BaseException as error:  # noqa: BLE001  a thread has no caller: the run raises it
                self.stop(None if self.stopping else error)

        return threading.Thread(target=run, name=name, daemon=True)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
