"""The controller, the authority and the leases of several workers against simulated providers, in virtual time.

Everything but the provider is the real code (`serving.pace`, `serving.quota`, `serving.permits`); the event loop jumps
to its next timer instead of sleeping. Seeds are fixed.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from serving.pace import Pace
from serving.permits import Permits
from serving.quota import Authority, Here, Limit, Route

ROUTE: Route = ("provider", "model")


class _Jumping(selectors.DefaultSelector):
    """Does not wait: whoever waits for the next timer is told that its time has come."""

    waited_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.waited_s += timeout or 0.0
        return super().select(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while it computes and jumps while it waits."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.waited_s


def in_virtual_time(work: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(work())


# ---------------------------------------------------------------- providers


class Limiter(Protocol):
    def __call__(self, now: float, tokens: float) -> float | None:
        """None: accepted. Otherwise seconds until it is worth trying again."""


class Bucket:
    """`per_s` requests (or tokens) a second flow in, up to `burst`."""

    def __init__(self, per_s: float, burst: float, tokens: bool = False):
        self.per_s, self.burst, self.level, self.at, self.tokens = per_s, burst, burst, 0.0, tokens

    def __call__(self, now: float, tokens: float) -> float | None:
        self.level = min(self.burst, self.level + self.per_s * (now - self.at))
        self.at, cost = now, tokens if self.tokens else 1.0
        if self.level < cost:
            return (cost - self.level) / self.per_s
        self.level -= cost
        return None


class Window:
    """`count` requests in every span of `span_s` that begins at a multiple of it."""

    def __init__(self, count: float, span_s: float = 1.0):
        self.count, self.span_s, self.used, self.number = count, span_s, 0, -1

    def __call__(self, now: float, tokens: float) -> float | None:
        number = int(now / self.span_s)
        if number != self.number:
            self.number, self.used = number, 0
        self.used += 1
        return None if self.used <= self.count else (number + 1) * self.span_s - now


class Sliding:
    """`count` accepted requests in any `span_s`."""

    def __init__(self, count: int, span_s: float = 1.0):
        self.count, self.span_s, self.times = count, span_s, deque[float]()

    def __call__(self, now: float, tokens: float) -> float | None:
        while self.times and self.times[0] <= now - self.span_s:
            self.times.popleft()
        if len(self.times) >= self.count:
            return self.times[0] + self.span_s - now
        self.times.append(now)
        return None


@dataclass
class Provider:
    """Answers after `latency_s` +- 20%; a 429 takes `refusal_s` (by default as long)."""

    limiter: Limiter
    latency_s: float = 0.5
    refusal_s: float | None = None
    tells_when: bool = False
    changes: Mapping[float, Limiter] = field(default_factory=dict)
    seed: int = 0
    accepted: list[float] = field(default_factory=list)
    limited: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    async def call(self, tokens: float) -> tuple[bool, float | None]:
        """(accepted, Retry-After)."""
        loop = asyncio.get_running_loop()
        takes_s = self.latency_s * self.random.uniform(0.8, 1.2)
        await asyncio.sleep(takes_s * self.random.uniform(0.05, 0.15))
        now = loop.time()
        if due := [at for at in self.changes if at <= now]:
            self.limiter, self.changes = self.changes[due[-1]], {at: c for at, c in self.changes.items() if at > now}
        wait_s = self.limiter(now, tokens)
        (self.accepted if wait_s is None else self.limited).append(now)
        if wait_s is None:
            self.tokens.append(tokens)
            await asyncio.sleep(0.9 * takes_s)
            return True, None
        await asyncio.sleep(0.9 * (takes_s if self.refusal_s is None else self.refusal_s))
        return False, (float(math.ceil(wait_s)) if self.tells_when else None)


@dataclass
class Run:
    """Workers that always want to send, for a while."""

    provider: Provider
    seconds: float
    limit: Limit = field(default_factory=Limit)
    workers: int = 4
    in_flight: int = 300
    tokens: Callable[[random.Random], float] = lambda _: 100.0
    estimate: Callable[[float], float] = lambda tokens: tokens
    rates: list[float] = field(default_factory=list)

    def go(self) -> Run:
        in_virtual_time(self._work)
        return self

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        authority = Authority({ROUTE: self.limit})
        quota = Here(authority, clock=loop.time)
        tasks = [asyncio.create_task(self._worker(quota, number)) for number in range(self.workers)]
        for _ in range(int(self.seconds)):
            await asyncio.sleep(1.0)
            self.rates.append(authority.rates().get(ROUTE, 0.0))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _worker(self, quota: Here, number: int) -> None:
        draw = random.Random(number)
        async with Permits(quota) as permits, asyncio.TaskGroup() as group:
            for _ in range(self.in_flight):
                group.create_task(self._calls(permits, draw))

    async def _calls(self, permits: Permits, draw: random.Random) -> None:
        queue = permits.queue(ROUTE)
        while True:
            tokens, accepted, again = self.tokens(draw), False, False
            while not accepted:
                permit = await permits.take(ROUTE, self.estimate(tokens), 0.0, again)
                try:
                    accepted, after_s = await self.provider.call(tokens)
                finally:
                    queue.settle(permit, 0.0, round(tokens) if accepted else None)
                    permits.tell_soon()
                again = not accepted
                if accepted:
                    queue.answered(permit, None)
                else:
                    queue.limited(permit, after_s)

    def share(self, per_s: float, since: float, until: float | None = None) -> float:
        """Accepted requests from `since` until `until`, of those that the limit would have allowed."""
        until = self.seconds if until is None else until
        return sum(since <= at < until for at in self.provider.accepted) / (per_s * (until - since))

    def turned_away(self, since: float = 0.0) -> float:
        """The share of 429s among all requests."""
        limited = sum(at >= since for at in self.provider.limited)
        return limited / max(1, limited + sum(at >= since for at in self.provider.accepted))

    def table(self) -> str:
        """Second by second, to read when a bar is missed."""
        lines = ["second   rate  accepted  429"]
        for k, rate in enumerate(self.rates):
            accepted, limited = (
                sum(k <= at < k + 1 for at in x) for x in (self.provider.accepted, self.provider.limited)
            )
            lines.append(f"{k:6d} {rate:6.0f}  {accepted:8d} {limited:4d}")
        return "\n".join(lines)
