"""A worker's side of the quota: calls wait here for their permit, and what became of them is reported.

One task a worker exchanges reports for grants (`serving.quota`) as long as calls wait or are under way. The permits of
a lease are used evenly over it. What a call will need is estimated before it, and settled after it.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import Counter, deque
from dataclasses import dataclass
from types import TracebackType

from serving.pace import LEASE_S
from serving.prices import Price
from serving.quota import KEEPALIVE_S, BudgetSpent, Grant, Limit, Quota, Report, Route, unpriced

GAP_S = 0.01
"""Two exchanges are at least so far apart."""
TOGETHER_S = 0.02
"""Calls are let go in groups of so much time: one at a time each wakes two processes, which costs more CPU than it."""
EXPIRES_S = 0.5
"""A permit that was not used by then is void: it would come as a burst."""


@dataclass(slots=True)
class Permit:
    """The right to send one request, and what was set aside for it."""

    tokens: float
    usd: float
    sent_at: float | None = None
    future: asyncio.Future[None] | None = None


class Queue:
    """The calls of one route that wait, the permits in hand, and what is still to be reported."""

    def __init__(self, route: Route, capped: bool):
        self.route, self._capped = route, capped
        self._loop = asyncio.get_running_loop()
        self.waiting: deque[Permit] = deque()
        self.under_way = 0
        self._starved = self._short_of_usd = False
        self._wanted, self._wanted_tokens, self._least_usd = 0, 0.0, 0.0
        self._held, self._held_until, self._held_tokens, self._purse_usd = 0, 0.0, 0.0, 0.0
        self._gap_s = self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._came, self._mean_tokens, self._mean_usd = 0, 0.0, 0.0
        self._told_at = self._loop.time()
        self._told: Limit | None = None
        self._limited: Counter[int] = Counter()
        self._retry_after_s: float | None = None
        self._announced: Limit | None = None
        self._begin_report()

    # ---------------------------------------------------------------- calls

    def put(self, permit: Permit, again: bool) -> None:
        """Let the call of this permit wait, unless it may be sent at once (then no future is set)."""
        self._came += 1
        self._mean_tokens += 0.05 * (permit.tokens - self._mean_tokens)
        self._mean_usd += 0.05 * (permit.usd - self._mean_usd)
        (self.waiting.appendleft if again else self.waiting.append)(permit)
        self._release()
        if permit.sent_at is None:
            permit.future = self._loop.create_future()

    def withdraw(self, permit: Permit) -> None:
        """Who waited for it was cancelled."""
        if permit.sent_at is not None:
            self.settle(permit, 0.0)
        elif permit in self.waiting:
            self.waiting.remove(permit)

    def settle(self, permit: Permit, paid_usd: float, tokens: int | None = None, unpriced: bool = False) -> None:
        """The call is over: its real cost and tokens (None: as estimated)."""
        self.under_way -= 1
        self._ended += 1
        self._paid_usd += paid_usd
        self._freed_usd += permit.usd - paid_usd
        self._unpriced += unpriced
        if tokens is not None:
            self._tokens_over += tokens - permit.tokens

    def answered(self, permit: Permit) -> None:
        self._answers += 1
        self._answered_s += self._age_s(permit)

    def announced(self, announced: Limit | None) -> None:
        """The limits in a response's headers, whatever its status."""
        if announced is not None and announced != self._told:
            self._told = self._announced = announced
            self._void()

    def limited(self, permit: Permit, retry_after_s: float | None) -> None:
        """A 429; with a Retry-After nothing is sent until then, here at once and elsewhere by the next lease."""
        self._limited[round(self._age_s(permit) * 20)] += 1
        self._void()
        if retry_after_s is not None:
            self._retry_after_s = max(retry_after_s, self._retry_after_s or 0.0)
            self._next_at = max(self._next_at, self._loop.time() + retry_after_s)

    def _void(self) -> None:
        """Permits that were granted without any limit are void as soon as one shows."""
        if not self._gap_s:
            self._held = 0

    def _age_s(self, permit: Permit) -> float:
        assert permit.sent_at is not None, "sent"
        return self._loop.time() - permit.sent_at

    def fail(self, error: Exception) -> None:
        """Nobody who waits will get a permit."""
        for permit in self.waiting:
            if permit.future is not None and not permit.future.done():
                permit.future.set_exception(error)
        self.waiting.clear()

    # ---------------------------------------------------------------- leases

    @property
    def open(self) -> bool:
        """Whether there is anything to wait for or to tell."""
        return bool(self.waiting or self.under_way or self._sent or self._ended or self._purse_usd > 0)

    @property
    def lacks(self) -> bool:
        """Whether somebody waits for what an exchange may bring at once."""
        return bool(self.waiting) and self._timer is None and not self._starved

    def _begin_report(self) -> None:
        self._sent = self._ended = self._answers = self._unpriced = 0
        self._answered_s = self._tokens_over = self._paid_usd = self._freed_usd = 0.0
        self._limited = Counter()
        self._retry_after_s = self._announced = None
        self._came, self._told_at = 0, self._loop.time()

    def _soon(self) -> int:
        """How many calls may come in the next two leases, as many as came lately. What is granted too much is void
        later, so nothing is asked in advance where permits are scarce."""
        if self._starved or not self._came:
            return 0
        elapsed_s = max(self._loop.time() - self._told_at, GAP_S)
        return math.ceil(self._came * max(1.0, 2 * LEASE_S / elapsed_s))

    def report(self, closing: bool = False) -> Report:
        """What happened since the last report, and what is wanted: for what waits, and for what will come soon."""
        soon = 0 if closing else self._soon()
        self._wanted = max(0, len(self.waiting) + soon - self._held)
        tokens = sum(p.tokens for p in self.waiting) + soon * self._mean_tokens - self._held_tokens
        self._wanted_tokens = max(0.0, tokens)
        if not self.waiting or self._short_of_usd:  # workers that each hold too little must not wait for each other
            self._freed_usd, self._purse_usd = self._freed_usd + self._purse_usd, 0.0
        usd = sum(p.usd for p in self.waiting) + soon * self._mean_usd - self._purse_usd if self.waiting else 0.0
        self._least_usd = max(0.0, self.waiting[0].usd - self._purse_usd) if self.waiting else 0.0
        report = Report(
            route=self.route,
            want=self._wanted,
            want_tokens=self._wanted_tokens,
            sent=self._sent,
            limited=tuple((age / 20, count) for age, count in self._limited.items()),
            answered_after_s=self._answered_s / self._answers if self._answers else None,
            retry_after_s=self._retry_after_s,
            announced=self._announced,
            tokens_over=self._tokens_over,
            usd_want=max(0.0, usd),
            usd_least=self._least_usd,
            usd_paid=self._paid_usd,
            usd_freed=self._freed_usd,
            unpriced=self._unpriced,
        )
        self._begin_report()
        return report

    def accept(self, grant: Grant) -> None:
        """Use what was granted, evenly over its lease."""
        now = self._loop.time()
        self._held = grant.requests + (self._held if now < self._held_until else 0)
        self._held_until = now + grant.over_s + EXPIRES_S
        both_finite = math.isfinite(grant.tokens) and math.isfinite(self._held_tokens)
        self._held_tokens = grant.tokens + self._held_tokens if both_finite else grant.tokens
        self._purse_usd += grant.usd
        self._starved = (
            grant.requests < self._wanted or grant.tokens < self._wanted_tokens or grant.usd < self._least_usd
        )
        if grant.requests:
            self._gap_s = grant.over_s / self._held
            self._next_at = max(self._next_at, now)
        if grant.pause_s:
            self._next_at = max(self._next_at, now + grant.pause_s)
        self._release()

    def _release(self) -> None:
        """Let go who may go, and come again when the next one may."""
        now = self._loop.time()
        while self.waiting and self._held and self._next_at <= now and self._affordable(self.waiting[0]):
            permit = self.waiting.popleft()
            if permit.future is not None and permit.future.done():
                continue
            self._held -= 1
            self._held_tokens -= permit.tokens
            self._purse_usd -= permit.usd
            self._next_at += self._gap_s
            self._sent += 1
            self.under_way += 1
            permit.sent_at = now
            if permit.future is not None:
                permit.future.set_result(None)
        if self._timer is None and self.waiting and self._held and self._next_at > now:
            self._timer = self._loop.call_at(max(self._next_at, now + TOGETHER_S), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._release()

    def _affordable(self, permit: Permit) -> bool:
        self._short_of_usd = permit.usd > self._purse_usd + 1e-9
        return not self._short_of_usd and permit.tokens <= self._held_tokens + 1e-6


class Permits:
    """The permits of one worker: an async context manager in one event loop. When it is left, every call is settled."""

    def __init__(self, quota: Quota):
        self.quota, self.worker = quota, uuid.uuid4().hex[:12]
        self._queues: dict[Route, Queue] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._over: Exception | None = None
        self._closing = False

    async def take(self, route: Route, tokens: float, usd: float, again: bool = False) -> Permit:
        """Wait until one request of about `tokens` that costs at most `usd` may be sent; it must be settled after.
        One that was turned away (`again`) goes before the others.

        Raises BudgetSpent when the cap in dollars leaves no room, OSError when the authority is gone.
        """
        if self._over is not None:
            raise self._over
        queue, permit = self.queue(route), Permit(tokens, usd if self.quota.capped else 0.0)
        queue.put(permit, again)
        self._wake_in(0.0 if queue.lacks else LEASE_S)
        if permit.future is not None:
            try:
                await permit.future
            except asyncio.CancelledError:
                queue.withdraw(permit)
                raise
        return permit

    def queue(self, route: Route) -> Queue:
        """Where the calls of one route wait and are settled."""
        if route not in self._queues:
            self._queues[route] = Queue(route, self.quota.capped)
        return self._queues[route]

    def price(self, route: Route) -> Price | None:
        """None when it is unknown: then a cap in dollars cannot be kept, and the call is not made."""
        price = self.quota.prices.of(*route)
        if price is None and self.quota.capped:
            raise unpriced([route])
        return price

    def tell_soon(self) -> None:
        """Something ended: it is reported within a lease."""
        self._wake_in(LEASE_S)

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._wakes_at <= at:
                return
            self._timer.cancel()
        self._timer, self._wakes_at = loop.call_at(at, self._wake.set), at  # uvloop's handles do not tell when

    async def _exchanging(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            self._timer = None
            await self._exchange()
            await asyncio.sleep(GAP_S)
        await self._exchange()

    async def _exchange(self) -> None:
        reports = [queue.report(self._closing) for queue in self._queues.values() if queue.open]
        grants = await self.quota.exchange(self.worker, reports)
        for grant in grants:
            self._queues[grant.route].accept(grant)
            if grant.spent is not None:
                self._stop(BudgetSpent(grant.spent))
        waiting = [grant.again_s for grant in grants if self._queues[grant.route].waiting]
        if any(queue.open for queue in self._queues.values()):
            self._wake_in(min([KEEPALIVE_S, *waiting]))

    def _stop(self, error: Exception) -> None:
        self._over = error
        for queue in self._queues.values():
            queue.fail(error)

    async def _guarded(self) -> None:
        """An authority that is gone fails everybody who waits."""
        try:
            await self._exchanging()
        except Exception as error:  # re-raised in every waiting call: this task has no caller
            self._stop(error)
            raise

    async def __aenter__(self) -> Permits:
        self._task = asyncio.create_task(self._guarded(), name="quota-leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._closing = True
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)  # an exchange that is under way is finished first
        if self._timer is not None:
            self._timer.cancel()
