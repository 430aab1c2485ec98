"""What a run says while it works: which stage, how many of how many, how long yet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from empathy.stages import Stage

Report = Callable[[Stage, int, int], None]
"""(stage, units done, units in all); units are rows, steps or examples."""


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@dataclass
class Progress:
    """Plain lines on `out`: one when a stage begins, ends, and at most every `every_s` seconds in between."""

    total: int = 0
    every_s: float = 5.0
    out: Callable[[str], None] = lambda line: print(line, flush=True)
    started: float = field(default_factory=time.monotonic)
    _done: set[str] = field(default_factory=set)
    _began: dict[str, float] = field(default_factory=dict)
    _said: float = 0.0

    def say(self, text: str) -> None:
        self.out(f"[{clock(time.monotonic() - self.started)}] {text}")

    def begin(self, total: int) -> None:
        """`total` stages are to be made."""
        self.total = total

    def _count(self) -> str:
        return f"{len(self._done)}/{self.total}"

    def units(self, stage: Stage, done: int, of: int) -> None:
        """`done` of `of` units of a stage are there."""
        now = time.monotonic()
        began = self._began.setdefault(stage.key, now)
        if done >= of > 0 and stage.kind in ("checkpoint", "logprobs"):  # their workers commit them one by one
            self.finished(stage, {})
            return
        if now - self._said < self.every_s and done:
            return
        self._said = now
        left = f", {clock((now - began) / done * (of - done))} to go" if 0 < done < of and now > began else ""
        self.say(f"{self._count()} {stage.kind:<10} {stage.label}: {done:,} of {of:,}{left}")

    def working(self, stages: list[Stage], what: str) -> None:
        """A batch of stages begins."""
        for stage in stages:
            self._began.setdefault(stage.key, time.monotonic())
        more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
        self.say(f"{self._count()} {what}: {stages[0].label or stages[0].kind}{more}")

    def finished(self, stage: Stage, counts: dict[str, int]) -> None:
        """A stage is in the store."""
        if stage.key in self._done:
            return
        self._done.add(stage.key)
        said = ", ".join(f"{n} {v:,}" for n, v in counts.items())
        self.say(f"{self._count()} {stage.kind:<10} {stage.label} done" + (f" ({said})" if said else "") + self._yet())

    def _yet(self) -> str:
        done, elapsed = len(self._done), time.monotonic() - self.started
        left = self.total - done
        return f"; about {clock(elapsed / done * left)} yet" if left > 0 and elapsed > 1 else ""


def to_terminal() -> Progress:
    """Lines to standard error, so that standard output stays for results."""
    return Progress(out=lambda line: print(line, file=sys.stderr, flush=True))
