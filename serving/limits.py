"""The rate limits of the fake providers: a bucket that fills, or windows; told in headers or not; changed on a time
table."""

from __future__ import annotations

import math
from dataclasses import dataclass

TOO_MANY = b'{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached, try again later"}}'


@dataclass(frozen=True)
class Limits:
    """`per_s` requests a second (0: any number). A bucket that holds `burst_s` seconds' worth, or, with `window_s`, so
    many in every window. `changes`: (seconds after the first request, new per_s). `tells`: x-ratelimit headers;
    `tells_when`: Retry-After in whole seconds."""

    per_s: float = 0.0
    burst_s: float = 0.1
    window_s: float = 0.0
    changes: tuple[tuple[float, float], ...] = ()
    tells: bool = False
    tells_when: bool = False


class Limiter:
    """Counts requests against `limits`. Times are seconds of any monotonic clock."""

    def __init__(self, limits: Limits):
        self.limits, self.per_s = limits, limits.per_s
        self.accepted = self.limited = 0
        self._changes = sorted(limits.changes)
        self._began: float | None = None
        self._at = self._level = 0.0
        self._window = -1

    def wait_s(self, now: float) -> float:
        """0: accepted. Otherwise the request is turned away, and it is worth trying again after so many seconds."""
        if not self.limits.per_s:
            self.accepted += 1
            return 0.0
        if self._began is None:
            self._began, self._at, self._level = now, now, self._most
        while self._changes and now - self._began >= self._changes[0][0]:
            self.per_s = self._changes.pop(0)[1]
        wait_s = self._by_window(now) if self.limits.window_s else self._by_bucket(now)
        self.accepted += not wait_s
        self.limited += bool(wait_s)
        return wait_s

    @property
    def _most(self) -> float:
        return max(1.0, self.per_s * self.limits.burst_s)

    def _by_bucket(self, now: float) -> float:
        self._level = min(self._most, self._level + (now - self._at) * self.per_s)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self.per_s
        self._level -= 1
        return 0.0

    def _by_window(self, now: float) -> float:
        number = int(now / self.limits.window_s)
        if number != self._window:
            self._window, self._level = number, self.per_s * self.limits.window_s
        if self._level < 1:
            return (number + 1) * self.limits.window_s - now
        self._level -= 1
        return 0.0

    def headers(self, wait_s: float) -> dict[str, str]:
        """What the response tells of the limit."""
        told: dict[str, str] = {}
        if self.limits.tells:
            a_minute = self.per_s * 60
            told["x-ratelimit-limit-requests"] = f"{a_minute:.0f}"
            told["x-ratelimit-remaining-requests"] = f"{max(0.0, a_minute - self._most + self._level):.0f}"
            told["x-ratelimit-reset-requests"] = f"{max(0.0, self._most - self._level) / self.per_s * 1000:.0f}ms"
        if self.limits.tells_when and wait_s:
            told["Retry-After"] = str(math.ceil(wait_s))
        return told
