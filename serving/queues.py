"""The calls of one route that wait in one worker, the permits in hand, and what is still to be reported."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass

from serving.pace import LEASE_S
from serving.providers import ProviderStopped
from serving.rates import Grant, Limit, Report, Route

GAP_S = 0.01
"""Two exchanges are at least so far apart."""
TOGETHER_S = 0.02
"""Calls are let go in groups of so much time: one at a time each wakes two processes, which costs more CPU than it."""
CATCH_UP_S = 0.04
"""What a busy worker has not sent in time goes at once only so far back; the rest is spread over its next lease."""
EXPIRES_S = 0.5
"""A permit that was not used by then is void: it would come as a burst."""


@dataclass(slots=True)
class Permit:
    """The right to send one request, and what was set aside for it."""

    tokens: float
    usd: float
    sent_at: float | None = None
    future: asyncio.Future[None] | None = None


def too_large(route: Route, tokens: float, tokens_per_minute: float) -> ProviderStopped:
    """A request that a limit of the profile leaves no room for."""
    provider, model = route
    return ProviderStopped(
        f"[providers.{provider}] tokens_per_minute = {tokens_per_minute:g} for model {model!r}: one request needs "
        f"about {math.ceil(tokens):,} tokens, its prompt and max_tokens; correct the limit in the profile (there, or "
        f'in [providers.{provider}.limits."{model}"]), or lower max_tokens'
    )


class Queue:
    """In one event loop; its `Permits` exchange its reports for grants."""

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
        self._refuse(grant.tokens_per_minute)
        self._release()

    def _refuse(self, tokens_per_minute: float) -> None:
        """Nobody waits for a permit that never comes, or comes once in many minutes."""
        for permit in [p for p in self.waiting if p.tokens > tokens_per_minute]:
            self.waiting.remove(permit)
            if permit.future is not None and not permit.future.done():
                permit.future.set_exception(too_large(self.route, permit.tokens, tokens_per_minute))

    def _release(self) -> None:
        """Let go who may go, and come again when the next one may."""
        now = self._loop.time()
        self._next_at = max(self._next_at, now - CATCH_UP_S)
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
