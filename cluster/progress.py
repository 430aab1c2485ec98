"""What a run says while it works: plain lines, or one live view of the whole grid on a terminal.

Figures come from this run alone. What is to come is what was, a stage: kinds of which none has ended yet are left out,
and then the estimate says "at least". A price that is not known makes no dollars: "?" stands there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.schedule import Schedule, State
from empathy.stages import Stage

if TYPE_CHECKING:
    from rich.console import Group

SHOWN_STAGES = 8
RATE_S = 30.0
"""Calls a second are those of the last so many seconds."""


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Asked:
    """What requests came to."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Progress:
    """Lines on `out`: one when a stage ends, and at most one every `every_s` seconds in between. Any thread may tell.

    `on_units` hears of every (stage, done, of), also of what is not said. `schedule` is set by the runner.
    """

    out: Callable[[str], None] = _to_stderr
    now_s: Callable[[], float] = time.monotonic
    every_s: float = 5.0
    on_units: Callable[[Stage, int, int], None] | None = None
    schedule: Schedule | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _started_s: float = field(init=False)
    _waiting: dict[str, Stage] = field(default_factory=dict)
    _total: int = 0
    _failed: int = 0
    _left: Counter[str] = field(default_factory=Counter)
    _ended: Counter[str] = field(default_factory=Counter)
    _taken_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _last_end_s: dict[str, float] = field(default_factory=dict)
    _units: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    _said_s: float = -1e9
    _asked: Asked = field(default_factory=Asked)
    _usd: float | None = 0.0
    _asking: set[str] = field(default_factory=set)
    _asked_stages: float = 0.0
    """How many stages' worth of dialogues this run has asked about."""
    _calls: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started_s = self.now_s()

    # ---- what happens

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        self.out(f"[{clock(self.now_s() - self._started_s)}] {text}")

    def begin(self, stages: Sequence[Stage], asking: Collection[str] = ()) -> None:
        """These stages are to be made; `asking` are the keys of those that send requests."""
        with self._lock:
            self._asking = set(asking)
            self._waiting = {s.key: s for s in stages}
            self._total, self._left = len(stages), Counter(s.kind for s in stages)
            self._last_end_s = dict.fromkeys({s.kind for s in stages}, self.now_s())

    def working(self, stages: Sequence[Stage], what: str) -> None:
        """A batch begins."""
        with self._lock:
            for stage in stages:
                self._last_end_s[stage.kind] = max(self._last_end_s.get(stage.kind, 0.0), self.now_s())
            more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
            if what != "in this process":
                self.say(f"{self._count} {what}: {stages[0].label or stages[0].kind}{more}")

    def units(self, stage: Stage, done: int, of: int) -> None:
        """`done` of `of` rows, steps, examples or parts of a stage are there."""
        if self.on_units:
            self.on_units(stage, done, of)
        with self._lock:
            now = self.now_s()
            began = self._units.setdefault(stage.key, (now, 0, 0))[0]
            self._units[stage.key] = (began, done, of)
            if done < of and now - self._said_s >= self.every_s and stage.key in self._waiting:
                self._said_s = now
                left = f", {clock((now - began) / done * (of - done))} to go" if 0 < done < of and now > began else ""
                self.say(f"{self._count} {stage.kind:<10} {stage.label}: {done:,} of {of:,}{left}")

    def asked(self, more: Asked, share: float, usd: float | None) -> None:
        """Requests came to this `more`, for `share` of a stage. `usd`: what the run has spent so far, None: unknown."""
        with self._lock:
            now = self._asked
            self._asked = Asked(
                now.calls + more.calls, now.tokens_in + more.tokens_in, now.tokens_out + more.tokens_out
            )
            self._usd = usd
            self._asked_stages += share
            self._calls.append((self.now_s(), more.calls))

    def finished(self, stage: Stage, counts: Mapping[str, int]) -> None:
        """A stage is in the store. Said once, however often it is told."""
        with self._lock:
            if self._waiting.pop(stage.key, None) is None:
                return
            now = self.now_s()
            self._units.pop(stage.key, None)
            self._asking.discard(stage.key)
            self._left[stage.kind] -= 1
            self._ended[stage.kind] += 1
            self._taken_s[stage.kind] += now - self._last_end_s[stage.kind]
            self._last_end_s[stage.kind] = now
            said = ", ".join(f"{n} {v:,}" for n, v in counts.items())
            self.say(f"{self._count} {stage.kind:<10} {stage.label} done" + (f" ({said})" if said else "") + self._yet)

    def failed(self, stage: Stage, why: str) -> None:
        """A stage cannot be made. The table at the end says it again, with what waits behind it."""
        with self._lock:
            self._failed += 1
            self._units.pop(stage.key, None)
            self.say(f"{self._count} {stage.kind:<10} {stage.label} FAILED: {why}")

    # ---- what is left

    @property
    def _count(self) -> str:
        failed = f" ({self._failed} failed)" if self._failed else ""
        return f"{self._total - len(self._waiting)}/{self._total}{failed}"

    @property
    def _yet(self) -> str:
        """As if kinds were made one after another; side by side it is sooner."""
        left = {kind: n for kind, n in self._left.items() if n}
        known = {kind: self._taken_s[kind] / n for kind, n in self._ended.items()}
        seconds = sum(n * known[kind] for kind, n in left.items() if kind in known)
        if not left or seconds < 1:
            return ""
        return f"; {'at least' if left.keys() - known.keys() else 'about'} {clock(seconds)} yet"

    def _calls_per_s(self) -> float:
        now = self.now_s()
        self._calls = [(at, n) for at, n in self._calls if now - at <= RATE_S]
        return sum(n for _, n in self._calls) / min(RATE_S, max(1.0, now - self._started_s))

    def _money(self) -> str:
        """Spent, and to come: as much a stage as so far, for every stage that asks and is not made."""
        if self._usd is None:
            return "dollars ? (a price is unknown)"
        left = len(self._asking) - sum(
            self._units[k][1] / max(1, self._units[k][2]) for k in self._asking & self._units.keys()
        )
        coming = f", about ${self._usd / self._asked_stages * left:,.2f} to come" if self._asked_stages else ""
        return f"${self._usd:,.2f} spent{coming}"

    # ---- the live view

    def view(self) -> Group:
        """The whole grid, for `rich`."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            now, asked = self.now_s(), self._asked
            states = (State.DONE, State.RUNNING, State.READY, State.WAITING, State.HELD, State.FAILED, State.BEHIND)
            table = Table("stages", *(state.value for state in states), box=None, pad_edge=False)
            counts = self.schedule.by_kind() if self.schedule else {}
            for kind in dict.fromkeys(kind for kind, _ in counts):
                table.add_row(kind, *(str(counts.get((kind, state), 0) or "-") for state in states))
            working = [
                Text(f"  {self._waiting[key].kind:<10} {self._waiting[key].label}: {done:,} of {of:,}")
                for key, (_, done, of) in self._units.items()
                if key in self._waiting
            ]
            figures = (
                f"{asked.calls:,} calls, {self._calls_per_s():,.1f}/s; tokens {asked.tokens_in:,} in, "
                f"{asked.tokens_out:,} out; {self._money()}; {clock(now - self._started_s)} gone{self._yet}"
            )
            return Group(table, *working[:SHOWN_STAGES], Text(figures))

    @contextmanager
    def live(self) -> Iterator[None]:
        """On a terminal: the view below the lines, drawn anew twice a second. Elsewhere: lines alone."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        console, plain = Console(stderr=True), self.out
        with Live(get_renderable=self.view, console=console, refresh_per_second=2, transient=True):
            self.out = lambda line: console.print(line, markup=False, highlight=False)
            try:
                yield
            finally:
                self.out = plain
