"""What is done, ready, running and waiting in a run: bookkeeping in memory, without a store and without Ray.

Events drive it: `done` lowers the count of inputs that each user still waits for, and what waits for none is ready. An
event costs the stage's own users and nothing else, so a graph of any size costs the same a stage. Of what is ready, the
stage with the longest chain of work behind it comes first.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from empathy.stages import Stage


@dataclass(frozen=True)
class Place:
    """Where a stage is made: the lane, and the model that must be up there ("" when none is)."""

    lane: str
    model: str = ""


class State(Enum):
    """Of one stage. HELD: another run is making it. BEHIND: something it needs has failed or was left."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"
    LEFT = "left"
    BEHIND = "behind"


OPEN = (State.WAITING, State.READY, State.RUNNING, State.HELD)


@dataclass(frozen=True)
class Failure:
    """A stage that is not made, why, and how many stages wait behind it (some of them behind others too). `left`:
    nothing is wrong with it (a cap). `lasting`: it fails the same way another time."""

    stage: Stage
    why: str
    behind: int
    left: bool = False
    lasting: bool = False


class Schedule:
    """The stages still to make. Every method may be called from any thread; `changed` is notified after each change."""

    def __init__(self, pending: Sequence[Stage], place_of: Callable[[Stage], Place]):
        """`pending` in an order that puts inputs first; an input that is not in it is done."""
        self.changed = threading.Condition(threading.RLock())
        self._stages = {stage.key: stage for stage in pending}
        self._places = {stage.key: place_of(stage) for stage in pending}
        self._states = dict.fromkeys(self._stages, State.WAITING)
        self._kinds = Counter((stage.kind, State.WAITING) for stage in pending)
        self._counts = Counter((self._places[stage.key], State.WAITING) for stage in pending)
        self._users: dict[str, list[str]] = defaultdict(list)
        self._waits: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._lasting: set[str] = set()
        self._ready: dict[Place, list[tuple[int, int, str]]] = defaultdict(list)
        for stage in pending:
            needed = {s.key for s in stage.inputs.values() if s.key in self._stages}
            self._waits[stage.key] = len(needed)
            for key in needed:
                self._users[key].append(stage.key)
        self._order = self._by_chain(pending)
        with self.changed:
            for key, number in self._waits.items():
                if not number:
                    self._move(key, State.READY)

    def _by_chain(self, pending: Sequence[Stage]) -> dict[str, tuple[int, int, str]]:
        """What sorts stages: the longest chain of work behind one first, then the order of `pending`."""
        chain: dict[str, int] = {}
        for stage in reversed(pending):
            chain[stage.key] = 1 + max((chain[user] for user in self._users[stage.key]), default=0)
        return {stage.key: (-chain[stage.key], k, stage.key) for k, stage in enumerate(pending)}

    def _move(self, key: str, state: State) -> None:
        before, place, kind = self._states[key], self._places[key], self._stages[key].kind
        self._states[key] = state
        self._kinds[kind, before] -= 1
        self._kinds[kind, state] += 1
        self._counts[place, before] -= 1
        self._counts[place, state] += 1
        if state is State.READY:
            heapq.heappush(self._ready[place], self._order[key])
        self.changed.notify_all()

    # ---- events

    def take(self, place: Place) -> Stage | None:
        """The first ready stage of `place`, now running; None when none is ready."""
        with self.changed:
            key = self._first(place)
            if key is None:
                return None
            heapq.heappop(self._ready[place])
            self._move(key, State.RUNNING)
            return self._stages[key]

    def _first(self, place: Place) -> str | None:
        """The key at the head of a place's heap; what is no longer ready is thrown out on the way."""
        heap = self._ready[place]
        while heap and self._states[heap[0][2]] is not State.READY:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def done(self, stage: Stage) -> None:
        """It is in the store, whoever made it. Its users may become ready."""
        with self.changed:
            if self._states[stage.key] is State.DONE:
                return
            self._move(stage.key, State.DONE)
            for user in self._users[stage.key]:
                self._waits[user] -= 1
                if not self._waits[user] and self._states[user] is State.WAITING:
                    self._move(user, State.READY)

    def back(self, stage: Stage) -> None:
        """It was not made, and nothing is wrong with it: ready again."""
        self._to(stage, State.READY)

    def hold(self, stage: Stage) -> None:
        """Another run is making it."""
        self._to(stage, State.HELD)

    def _to(self, stage: Stage, state: State) -> None:
        with self.changed:
            if self._states[stage.key] in OPEN:
                self._move(stage.key, state)

    def failed(self, stage: Stage, why: str, left: bool = False, lasting: bool = False) -> list[Stage]:
        """It cannot be made in this run (`lasting`: nor in another); nor can what stands on it, which is returned.
        `left`: nothing is wrong with it."""
        with self.changed:
            if self._states[stage.key] not in OPEN:
                return []
            self._reasons[stage.key] = why
            self._lasting |= {stage.key} if lasting else set()
            self._move(stage.key, State.LEFT if left else State.FAILED)
            behind = [key for key in self._descendants(stage.key) if self._states[key] is State.WAITING]
            for key in behind:
                self._move(key, State.BEHIND)
            return [self._stages[key] for key in behind]

    def _descendants(self, key: str) -> set[str]:
        found: set[str] = set()
        stack = [key]
        while stack:
            new = [user for user in self._users[stack.pop()] if user not in found]
            found.update(new)
            stack.extend(new)
        return found

    # ---- questions

    def places(self) -> set[Place]:
        return set(self._places.values())

    def state(self, stage: Stage) -> State:
        return self._states[stage.key]

    def count(self, states: Iterable[State], place: Place | None = None) -> int:
        """How many stages are in one of `states`, at `place` or anywhere."""
        with self.changed:
            if place is not None:
                return sum(self._counts[place, state] for state in states)
            return sum(self._kinds[kind, state] for kind, state in self._kinds if state in set(states))

    def at(self, place: Place, states: Iterable[State]) -> list[Stage]:
        """The stages of `place` that are in one of `states`."""
        wanted = set(states)
        with self.changed:
            keys = [key for key, there in self._places.items() if there == place and self._states[key] in wanted]
            return [self._stages[key] for key in keys]

    def by_kind(self) -> dict[tuple[str, State], int]:
        """Number of stages by kind and state."""
        with self.changed:
            return {name: n for name, n in self._kinds.items() if n}

    def best(self, places: Iterable[Place]) -> Place | None:
        """Of `places`, the one whose first ready stage should come first; None when none has any."""
        with self.changed:
            heads = [(self._order[key], place) for place in places if (key := self._first(place)) is not None]
            return min(heads, key=lambda head: head[0])[1] if heads else None

    def frees(self, stage: Stage, at_most: int) -> int:
        """How many stages of its place wait for `stage` alone; no more than `at_most` are counted."""
        with self.changed:
            place = self._places[stage.key]
            waiting = (
                user
                for user in self._users[stage.key]
                if self._waits[user] == 1 and self._states[user] is State.WAITING and self._places[user] == place
            )
            return sum(1 for _ in islice(waiting, at_most))

    def held(self) -> list[Stage]:
        with self.changed:
            if not any(n for (_, state), n in self._kinds.items() if state is State.HELD):
                return []
            return [self._stages[key] for key, state in self._states.items() if state is State.HELD]

    @property
    def unmade(self) -> int:
        """How many stages are not done, each counted once, behind however many failures it waits."""
        return self.count([state for state in State if state is not State.DONE])

    @property
    def ended(self) -> bool:
        return self.count(OPEN) == 0

    def failures(self) -> list[Failure]:
        """Every stage that failed or was left, in the order it happened."""
        with self.changed:
            return [
                Failure(
                    self._stages[key],
                    why,
                    sum(self._states[k] is State.BEHIND for k in self._descendants(key)),
                    self._states[key] is State.LEFT,
                    key in self._lasting,
                )
                for key, why in self._reasons.items()
            ]
