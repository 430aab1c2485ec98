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
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest

from serving.pace import OF_LIMIT, Pace
from serving.permits import Permits
from serving.queues import Permit
from serving.quota import Authority, Here
from serving.rates import Limit, Route

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
            self.rates.append(authority.rates.per_s().get(ROUTE, 0.0))
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
                    queue.answered(permit)
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


# ---------------------------------------------------------------- the bars


KNOWN = Limit(requests_per_minute=60_000)


@pytest.mark.parametrize(
    "limiter", [Bucket(1000, 50), Window(1000), Sliding(1000)], ids=["bucket", "window", "sliding"]
)
def test_a_known_limit_is_used_and_not_passed(limiter: Limiter) -> None:
    run = Run(Provider(limiter), 12, KNOWN).go()
    assert run.share(1000, 1) >= 0.95, run.table()
    assert run.turned_away() <= 0.005, run.table()


def changing(kind: Callable[[float], Limiter], first: float, then: float) -> Provider:
    return Provider(kind(first), changes={30.0: kind(then)})


@pytest.mark.parametrize(("per_s", "seed"), [(1000, 1), (200, 2), (200, 3), (200, 4)])
@pytest.mark.parametrize("factor", [0.5, 2], ids=["halved", "doubled"])
def test_an_unknown_limit_is_found_within_15_s_and_again_when_it_changes(
    factor: float, per_s: float, seed: int
) -> None:
    provider = replace(changing(lambda per_s: Bucket(per_s, per_s / 10), per_s, factor * per_s), seed=seed)
    run = Run(provider, 50, in_flight=int(0.45 * per_s)).go()
    assert run.share(per_s, 15, 30) >= 0.9, run.table()
    assert run.share(factor * per_s, 45) >= 0.9, run.table()
    assert run.turned_away(15) <= 0.06, run.table()  # those of the change itself are among them


@pytest.mark.parametrize(
    "kind", [Window, lambda n: Sliding(int(n)), lambda n: Bucket(n, n)], ids=["window", "sliding", "1 s"]
)
@pytest.mark.parametrize("then", [100, 400], ids=["halved", "doubled"])
def test_a_limit_that_is_counted_in_seconds_is_found(kind: Callable[[float], Limiter], then: float) -> None:
    run = Run(changing(kind, 200, then), 60, in_flight=100).go()
    assert run.share(200, 15, 30) >= 0.9, run.table()
    assert run.share(then, 45) >= 0.9, run.table()


def test_a_slow_model_with_quick_refusals_is_found_as_fast() -> None:
    """Answers take 5 s, 429s 50 ms: what was sent and not turned away counts as accepted."""
    run = Run(Provider(Bucket(100, 10), latency_s=5.0, refusal_s=0.05), 30, in_flight=300).go()
    assert run.share(100, 15) >= 0.9, run.table()
    assert run.turned_away(15) <= 0.03, run.table()


def test_sixty_a_minute_for_four_workers() -> None:
    run = Run(Provider(Bucket(1, 3)), 120, Limit(60), in_flight=8).go()
    assert run.share(1, 10) >= 0.95
    assert run.turned_away() == 0
    unknown = Run(Provider(Bucket(1, 3)), 240, in_flight=8).go()
    assert unknown.share(1, 60) >= 0.9, unknown.table()


def test_a_limit_in_tokens_whatever_was_estimated() -> None:
    """60,000 tokens a minute, replies of 50 to 150; estimates are 40% too high and are settled afterwards."""
    run = Run(
        Provider(Bucket(1000, 500, tokens=True)), 60, Limit(60_000, 60_000),
        in_flight=20, tokens=lambda draw: draw.uniform(50, 150), estimate=lambda tokens: 1.4 * tokens,
    ).go()  # fmt: skip
    used = sum(run.provider.tokens) / (1000 * 60)
    assert 0.95 <= used <= 1.0, run.table()
    assert run.turned_away() <= 0.005, run.table()


def test_after_a_retry_after_nobody_sends() -> None:
    """A window of a minute is spent; the next one is waited for, by all workers, and then used."""
    run = Run(Provider(Window(600, 60), tells_when=True), 130, in_flight=20).go()
    assert len(run.provider.accepted) >= 1200
    first = next(at for at in run.provider.limited if at > 1)
    assert first < 30
    told = first + 0.45 * 1.2 + 0.1  # the answer's way back, and the last lease
    assert not [at for at in run.provider.limited + run.provider.accepted if told + 0.1 < at < 59.9], run.table()


def test_a_limit_with_retry_after_is_found() -> None:
    """Every probe that is turned away costs a second of everybody's time, so there are few: two in this minute."""
    run = Run(Provider(Bucket(200, 20), tells_when=True), 105, in_flight=100).go()
    assert run.share(200, 45) >= 0.88, run.table()
    assert run.turned_away(30) <= 0.02, run.table()


def test_a_worker_that_dies_takes_no_more_than_a_lease_with_it() -> None:
    """Three of four workers vanish without a word; the fourth has the whole limit within seconds."""

    async def work() -> list[float]:
        provider = Provider(Bucket(200, 20))
        run = Run(provider, 20)
        quota = Here(Authority({ROUTE: Limit(12_000)}), clock=asyncio.get_running_loop().time)
        deaf = [Permits(quota) for _ in range(3)]
        for permits in deaf:  # they ask for much, get their share, and are never heard of again
            queue = permits.queue(ROUTE)
            for _ in range(500):
                queue.put(Permit(100.0, 0.0), again=False)
            await quota.exchange(permits.worker, [queue.report()])
        task = asyncio.create_task(run._worker(quota, 0))
        await asyncio.sleep(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return provider.accepted

    accepted = in_virtual_time(work)
    assert sum(4 <= at < 20 for at in accepted) >= 0.95 * 200 * 16


# ---------------------------------------------------------------- the controller alone


def test_a_known_limit_needs_no_start() -> None:
    assert Pace(1000.0).decide(0.0) == OF_LIMIT * 1000
    assert Pace(math.inf).decide(0.0) == math.inf


def test_what_was_sent_before_a_cut_says_nothing_about_it() -> None:
    """429s of one overload that trickle in over a second cut the rate once."""
    pace = Pace(100.0)
    for tenth in range(20):
        pace.sent(tenth / 10, 10)
        pace.decide(tenth / 10)
    pace.limited(2.0, 0.4, 5)
    once = pace.decide(2.0)
    assert once == pytest.approx(0.96 * 98)
    pace.limited(2.1, 0.45, 5)
    pace.limited(2.3, 0.6, 5)
    assert pace.decide(2.3) == once
    pace.sent(2.6, 10)
    pace.limited(2.8, 0.3, 5)  # sent at 2.5, at the new rate
    assert pace.decide(2.8) < once


def test_the_providers_word_replaces_a_search() -> None:
    pace = Pace()
    before = pace.decide(0.0)
    pace.announce(500.0)
    assert (before < 50, pace.decide(0.1)) == (True, OF_LIMIT * 500)
    pace.announce(100.0)
    assert pace.decide(0.2) == OF_LIMIT * 100


def test_an_unused_rate_is_not_raised() -> None:
    pace = Pace()
    for second in range(100):
        pace.sent(float(second), 1)
        rate = pace.decide(float(second))
    assert rate == Pace().rate_per_s
