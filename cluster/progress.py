"""What a run says while it works: which stage, how many of how many, how long yet."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from empathy.stages import Stage


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@dataclass
class Progress:
    """Plain lines on `out`: one when a stage ends, and at most one every `every_s` seconds in between.

    What is left is estimated from this run alone: the mean wall time of finished stages of each kind. Kinds of which
    none has been finished yet are left out, and then the estimate says "at least".
    """

    out: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    now_s: Callable[[], float] = time.monotonic
    every_s: float = 5.0
    _started_s: float = field(init=False)
    _waiting: dict[str, str] = field(default_factory=dict)
    _total: int = 0
    _taken_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _last_end_s: float = field(init=False)
    _began_s: dict[str, float] = field(default_factory=dict)
    _said_s: float = -1e9

    def __post_init__(self) -> None:
        self._started_s = self._last_end_s = self.now_s()

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        self.out(f"[{clock(self.now_s() - self._started_s)}] {text}")

    def begin(self, stages: Sequence[Stage]) -> None:
        """These stages are to be made."""
        self._waiting = {s.key: s.kind for s in stages}
        self._total = len(stages)

    def working(self, stages: Sequence[Stage], what: str) -> None:
        """A batch begins."""
        self._last_end_s = self.now_s()
        more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
        self.say(f"{self._count} {what}: {stages[0].label or stages[0].kind}{more}")

    def units(self, stage: Stage, done: int, of: int) -> None:
        """`done` of `of` rows, steps, examples or parts of a stage are there."""
        now = self.now_s()
        began = self._began_s.setdefault(stage.key, now)
        if done >= of > 0 and stage.kind in ("checkpoint", "logprobs"):  # their workers commit them one by one
            self.finished(stage, {})
        elif now - self._said_s >= self.every_s and stage.key in self._waiting:
            self._said_s = now
            left = f", {clock((now - began) / done * (of - done))} to go" if 0 < done < of and now > began else ""
            self.say(f"{self._count} {stage.kind:<10} {stage.label}: {done:,} of {of:,}{left}")

    def finished(self, stage: Stage, counts: Mapping[str, int]) -> None:
        """A stage is in the store. Said once, however often it is told."""
        if self._waiting.pop(stage.key, None) is None:
            return
        now = self.now_s()
        self._taken_s[stage.kind].append(now - self._last_end_s)
        self._last_end_s = now
        said = ", ".join(f"{n} {v:,}" for n, v in counts.items())
        self.say(f"{self._count} {stage.kind:<10} {stage.label} done" + (f" ({said})" if said else "") + self._yet)

    @property
    def _count(self) -> str:
        return f"{self._total - len(self._waiting)}/{self._total}"

    @property
    def _yet(self) -> str:
        left = Counter(self._waiting.values())
        known = {kind: sum(s) / len(s) for kind, s in self._taken_s.items()}
        seconds = sum(n * known[kind] for kind, n in left.items() if kind in known)
        if not left or seconds < 1:
            return ""
        return f"; {'at least' if left.keys() - known.keys() else 'about'} {clock(seconds)} yet"
