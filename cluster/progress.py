"""What a run says while it works: plain lines, or on a terminal one live view of the whole grid (`cluster.live`).

    [1:05] 33/144 checkpoint tiny sft method=direct: 6 of 31 steps, 0:21 to go
    [1:30] in all: 34 of 144 stages made, 2 at work, 108 to come; 600 calls (12.3/s), $0.12 spent; about 6:00 to go

Figures come from this run alone: calls and dollars from its quota, times from what was done of late
(`cluster.estimate`). What cannot be told is called unknown.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.estimate import Estimate, Sort
from cluster.schedule import Schedule, State
from cluster.tally import Tally
from empathy.stages import Stage
from empathy.words import counted

if TYPE_CHECKING:
    from cluster.quota import Seen
    from serving.rates import Route

STAGE_EVERY_S = 10.0
"""A lane says at most so often how far it is."""
WHOLE_EVERY_S = 30.0
"""And so often it is said how far the whole run is, also when nothing else happens."""
SAME_LOSS_S = 60.0
"""One loss is often met by many: it is said once."""
UNITS = {
    "checkpoint": "steps",
    "logprobs": "examples",
    "replies": "dialogues",
    "verdicts": "dialogues",
    "examples": "dialogues",
}
COUNTS = {
    "from_ledger": "from the ledger",
    "tokens_in": "tokens in",
    "tokens_out": "tokens out",
    "damaged": "damaged in the ledger and asked again",
}


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def named(stage: Stage) -> str:
    """What lines call a stage."""
    return stage.kind if stage.label in ("", stage.kind) else f"{stage.kind} {stage.label}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run. `counts`: stages by kind and state; `working`: a line a stage that is at work."""

    counts: Mapping[tuple[str, State], int]
    working: Sequence[str]
    money: str
    time: str


@dataclass
class _Units:
    """`start` of `of` were done when the stage was first heard of; `told`: what its workers have beside them."""

    start: int
    done: int
    of: int
    told: int = 0


@dataclass
class Progress:
    """Lines on `out`. Any thread may tell. `on_units` hears of every (stage, done, of), also of what is not said;
    `schedule` is set by the runner; `quiet` leaves out lines on what is at work (the live view has it)."""

    out: Callable[[str], None] = _to_stderr
    now_s: Callable[[], float] = time.monotonic
    on_units: Callable[[Stage, int, int], None] | None = None
    schedule: Schedule | None = None
    quiet: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _started_s: float = field(init=False)
    _waiting: dict[str, Stage] = field(default_factory=dict)
    _total: int = 0
    _failed: int = 0
    _sorts: dict[str, Sort] = field(default_factory=dict)
    _estimate: Estimate = field(default_factory=Estimate)
    _units: dict[str, _Units] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)
    _held_said: bool = False
    _said_s: dict[str, float] = field(default_factory=dict)
    _losses_s: dict[str, float] = field(default_factory=dict)
    _left_why: set[str] = field(default_factory=set)
    _tally: Tally = field(default_factory=Tally)
    _restarts: dict[str, int] = field(default_factory=dict)
    _away: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._started_s = self.now_s()

    # ---- what happens

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        self.out(f"[{clock(self.now_s() - self._started_s)}] {text}")

    def begin(
        self,
        stages: Sequence[Stage],
        sort_of: Callable[[Stage], Sort] = lambda stage: Sort(stage.kind, stage.kind),
        asking: Mapping[str, Route | None] | None = None,
    ) -> None:
        """These stages are to be made. `asking`: see `Tally`."""
        with self._lock:
            self._waiting = {s.key: s for s in stages}
            self._sorts = {s.key: sort_of(s) for s in stages}
            self._total, self._estimate, self._tally = len(stages), Estimate(self._sorts), Tally(asking)
            self._said_s["in all"] = self.now_s()
            if stages:
                kinds = ", ".join(f"{kind} {n:,}" for kind, n in Counter(s.kind for s in stages).items())
                self.say(f"{counted(len(stages), 'stage')} to make: {kinds}")

    def working(self, stages: Sequence[Stage], what: str) -> None:
        """A batch begins."""
        more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
        self.say(f"{what}: {named(stages[0])}{more}")

    def taken(self, stage: Stage) -> None:
        """It is made now, or next."""
        with self._lock:
            self._held.discard(stage.key)
            self._estimate.taken(stage.key, self.now_s())

    def units(self, stage: Stage, done: int, of: int) -> None:
        """`done` of `of` rows, steps or examples of a stage are there. The first word of it is where it begins."""
        if self.on_units:
            self.on_units(stage, done, of)
        with self._lock:
            if stage.key not in self._waiting:
                return
            units = self._units.get(stage.key)
            if units is None:
                units = self._units[stage.key] = _Units(done, done, of)
                if 0 < done < of:
                    self._say_of(stage, f"goes on at {self._far(stage)}, which were saved before")
            done = max(done, min(of, units.start + units.told)) if units.told else done
            if done < units.done:
                begins = f"goes on at {done:,}" if done else "begins anew"
                self._say_of(stage, f"{begins}; it was at {self._far(stage)}")
            units.done, units.of = done, of
            self._moved(stage)

    def _moved(self, stage: Stage) -> None:
        units, now, thread = self._units[stage.key], self.now_s(), self._sorts[stage.key].thread
        self._estimate.at(stage.key, units.done / units.of if units.of else 0.0, now)
        due = now - self._said_s.get(thread, -STAGE_EVERY_S) >= STAGE_EVERY_S
        if due and units.done < units.of and not self.quiet:
            self._said_s[thread] = now
            self._say_of(stage, self._far(stage) + self._stage_to_go(stage.key), ":")
        self._say_whole()

    def asked(self, calls: int) -> None:
        """So many requests were answered that the quota does not see: those of batches."""
        with self._lock:
            self._tally.batched(calls)

    def seen(self, seen: Seen) -> None:
        """What the run's quota knows now."""
        with self._lock:
            self._tally.seen(seen, self.now_s())
            for name, number in seen.restarts.items():
                if more := number - self._restarts.get(name, 0):
                    self._restarts[name] = number
                    self._restarted(name, more)
            for name in sorted(seen.away.keys() - self._away):
                self.say(f"warning: {seen.away[name]}")
            self._away = frozenset(seen.away)
            for key, rows in seen.rows.items():
                units = self._units.get(key)
                if units is None or key not in self._waiting or rows <= units.told:
                    continue
                units.told = rows
                units.done = max(units.done, min(units.of, units.start + rows))
                self._moved(self._waiting[key])
            self._say_whole()

    def _restarted(self, name: str, number: int) -> None:
        workers = "a worker's process is" if number == 1 else f"{number} workers' processes are"
        self.lost(
            f"asking {name}",
            f"{workers} gone (killed, crashed, or the machine was lost) and started again; what had been answered is "
            "kept, only calls that were under way are sent once more",
        )

    def lost(self, thread: str, text: str) -> None:
        """Somebody who works there died. Said once, however many tell it."""
        with self._lock:
            now, line = self.now_s(), f"warning: {thread}: {text}"
            self._estimate.rests(thread)
            if now - self._losses_s.get(line, -SAME_LOSS_S) >= SAME_LOSS_S:
                self._losses_s[line] = now
                self.say(line)

    def stopped(self, stage: Stage) -> None:
        """It is not made after all, and will be tried again."""
        with self._lock:
            self._units.pop(stage.key, None)
            self._estimate.stopped(stage.key)

    def held(self, stage: Stage) -> None:
        """Another run is making it."""
        with self._lock:
            self.stopped(stage)
            if not self._held_said:  # there may be hundreds
                self._held_said = True
                self._say_of(stage, "is being made by another run: such stages are left to it, and waited for", ":")
            self._held.add(stage.key)

    def finished(self, stage: Stage, counts: Mapping[str, int]) -> None:
        """A stage is in the store. Said once, however often it is told."""
        with self._lock:
            if self._waiting.pop(stage.key, None) is None:
                return
            self._units.pop(stage.key, None)
            took_s = self._estimate.ended(stage.key, self.now_s())
            by = " by another run" if stage.key in self._held else ""
            took = f" in {clock(took_s)}" if took_s is not None and took_s >= 1 else ""
            said = ", ".join(f"{n:,} {COUNTS.get(name, name.replace('_', ' '))}" for name, n in _told(counts).items())
            self._say_of(stage, f"made{by}{took}" + (f" ({said})" if said else ""), ":")
            self._say_whole()

    def failed(self, stage: Stage, why: str, behind: Sequence[Stage] = ()) -> None:
        """A stage cannot be made, nor what stands on it. The table at the end says it again."""
        with self._lock:
            self._failed += 1
            self._give_up([stage, *behind])
            waits = f" ({counted(len(behind), 'stage')} that stand{'s' * (len(behind) == 1)} on it will not be made)"
            self._say_of(stage, f"FAILED: {why}" + (waits if behind else ""), ":")

    def left(self, stage: Stage, why: str, behind: Sequence[Stage] = ()) -> None:
        """A stage is left to the next run; nothing is wrong with it. One line a reason: many are left at once."""
        with self._lock:
            self._give_up([stage, *behind])
            if why not in self._left_why:
                self._left_why.add(why)
                self.say(f"{why}; what would need more calls is left to the next run")

    def _give_up(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._units.pop(stage.key, None)
            self._estimate.given_up(stage.key)

    # ---- lines

    def _say_of(self, stage: Stage, text: str, after: str = "") -> None:
        name = f"{stage.kind:<10} {stage.label}" if named(stage) != stage.kind else stage.kind
        failed = f" ({self._failed} failed)" if self._failed else ""
        self.say(f"{self._total - len(self._waiting)}/{self._total}{failed} {name}{after} {text}")

    def _far(self, stage: Stage) -> str:
        units = self._units[stage.key]
        return f"{units.done:,} of {units.of:,} {UNITS.get(stage.kind, 'parts')}"

    def _stage_to_go(self, key: str) -> str:
        if not self._estimate.share(key):
            return ""
        seconds = self._estimate.of_stage(key, self.now_s())
        return ", time to go unknown" if seconds is None else f", {clock(seconds)} to go"

    def _say_whole(self) -> None:
        now = self.now_s()
        if self.quiet or not self._waiting or now - self._said_s.get("in all", now) < WHOLE_EVERY_S:
            return
        self._said_s["in all"] = now
        said = self._stages(), self._tally.said(self._estimate), self._to_go()
        self.say(f"in all: {'; '.join(filter(None, said))}")

    def _stages(self) -> str:
        made = f"{self._total - len(self._waiting):,} of {counted(self._total, 'stage')} made"
        if self.schedule is None:
            return made
        states = (
            ((State.RUNNING,), "at work"),
            ((State.HELD,), "made by others"),
            ((State.READY, State.WAITING), "to come"),
            ((State.FAILED,), "failed"),
            ((State.LEFT,), "left"),
            ((State.BEHIND,), "behind those"),
        )
        counts = [(self.schedule.count(which), name) for which, name in states]
        return ", ".join([made, *(f"{n:,} {name}" for n, name in counts if n)])

    def _to_go(self) -> str:
        if not self._waiting:
            return "all made"
        left = self._estimate.left(self.now_s())
        if left is None:
            return "time to go unknown"
        without = f" (not counted: {', '.join(left.without)})" if left.without else ""
        return f"{'at least' if left.at_least else 'about'} {clock(left.seconds)} to go{without}"

    # ---- the live view

    def glance(self) -> Snapshot | None:
        """A snapshot, or None while somebody tells something: who draws has the terminal, for which who tells may be
        waiting."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self.snapshot()
        finally:
            self._lock.release()

    def snapshot(self) -> Snapshot:
        counts = self.schedule.by_kind() if self.schedule else {}
        with self._lock:
            working = [
                f"{named(self._waiting[key])}: {self._far(self._waiting[key])}{self._stage_to_go(key)}"
                for key in reversed(self._units)
                if key in self._waiting
            ]
            gone = clock(self.now_s() - self._started_s)
            return Snapshot(counts, working, self._tally.said(self._estimate), f"{gone} gone, {self._to_go()}")


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts worth a line: no zeros, and not what `empathy ledger` tells."""
    return {name: n for name, n in counts.items() if n and not name.startswith("shared")}
