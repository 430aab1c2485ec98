"""Requests and tokens a minute of each (provider, model), leased to those who ask.

About every 100 ms each worker reports what it sent and what came back, says what it wants to send, and is granted
requests and tokens (`Report`, `Grant`; `serving.quota` adds dollars). No clock and no I/O: the caller brings the
time. A worker that dies takes at most one lease of requests with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.pace import LEASE_S, OF_LIMIT, Pace

Route = tuple[str, str]
"""(provider, model)."""
SILENT_S = 2.0
"""A worker that has not reported for so long is not given a share of what is there."""
KEEPALIVE_S = 1.0
SPREAD_S = 0.5
"""What a worker that came late has missed is sent over more than a lease, at most so long."""
CARRIED_S = 0.02
"""What nobody wanted is kept for so long, and not saved up: providers punish bursts."""


@dataclass(frozen=True)
class Limit:
    """What a provider allows for one model. None: not known, start slowly. Infinity: it is our own, or nobody minds;
    send what there is until the first 429."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


UNKNOWN = Limit()


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker did on one route since its last report, and what it wants now.

    `limited`: 429s as (seconds since they were sent, how many). `tokens_over`: tokens that answers had beyond their
    estimate (negative: fewer). `usd_want`: to be reserved for calls that wait, of which the first needs `usd_least`;
    `usd_paid` and `usd_freed` are reservations that ended, the one as cost, the other not; `unpriced` calls were paid
    for at a price that nobody knows.
    """

    route: Route
    want: int = 0
    want_tokens: float = 0.0
    sent: int = 0
    limited: tuple[tuple[float, int], ...] = ()
    answered_after_s: float | None = None
    retry_after_s: float | None = None
    announced: Limit | None = None
    tokens_over: float = 0.0
    usd_want: float = 0.0
    usd_least: float = 0.0
    usd_paid: float = 0.0
    usd_freed: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What the worker may send on one route, evenly over `over_s`, and when to ask again. `tokens` is infinite where
    no limit of tokens is known.

    `spent` is set when the cap is reached: nothing more will be granted in this run.
    """

    route: Route
    requests: int
    tokens: float
    usd: float
    over_s: float
    pause_s: float
    again_s: float
    spent: str | None = None
    tokens_per_minute: float = math.inf
    """What the profile allows this model in a minute: a request that needs more would never be sent."""


# ---------------------------------------------------------------- rates


@dataclass
class _Worker:
    """One worker's share on one route: what it has not fetched yet, and what it still wants."""

    seen_at: float
    want: int = 0
    want_tokens: float = 0.0
    credit: int = 0
    credit_tokens: float = 0.0


class Flow:
    """The requests and tokens of one route, divided fairly among the workers that want them."""

    def __init__(self, limit: Limit, now: float):
        rpm, tpm = limit.requests_per_minute, limit.tokens_per_minute
        self.pace = Pace(None if rpm is None else rpm / 60)
        self._tokens_per_s = math.inf if tpm is None else OF_LIMIT * tpm / 60
        self._most = math.inf if tpm is None else tpm
        self._workers: dict[str, _Worker] = {}
        self._at = now
        self._over, self._over_tokens = 1.0, 0.0  # the first request may go at once
        self._turn = 0
        self._known = limit

    def report(self, worker: str, report: Report, now: float) -> None:
        """Take in what happened."""
        if report.sent:
            self.pace.sent(now, report.sent)
        for age_s, count in report.limited:
            self.pace.limited(now, age_s, count)
        if report.answered_after_s is not None:
            self.pace.answered(report.answered_after_s)
        if report.retry_after_s is not None:
            self.pace.pause(now, report.retry_after_s)
        if report.announced is not None:
            self._announce(report.announced)
        self._over_tokens -= report.tokens_over
        self._divide(now)
        entry = self._workers.setdefault(worker, _Worker(now))
        entry.seen_at, entry.want, entry.want_tokens = now, report.want, report.want_tokens
        self._divide(now)

    def tell(self, limit: Limit) -> None:
        """Another one who knows a limit: the lower holds."""
        known = Limit(
            _lower(self._known.requests_per_minute, limit.requests_per_minute),
            _lower(self._known.tokens_per_minute, limit.tokens_per_minute),
        )
        if known.requests_per_minute is not None and known.requests_per_minute != self._known.requests_per_minute:
            self.pace.announce(known.requests_per_minute / 60)
        if known.tokens_per_minute is not None and known.tokens_per_minute != self._known.tokens_per_minute:
            self._tokens_per_s, self._most = OF_LIMIT * known.tokens_per_minute / 60, known.tokens_per_minute
        self._known = known

    def grant(self, worker: str, route: Route, now: float) -> Grant:
        """What `worker` has a right to by now."""
        rate = self.pace.decide(now)
        entry = self._workers[worker]
        asked, hungry = entry.want, sum(w.want > 0 for w in self._workers.values()) or 1
        pause_s = max(0.0, self.pace.paused_until - now)
        if pause_s:
            return Grant(route, 0, 0.0, 0.0, 0.0, pause_s, min(pause_s, KEEPALIVE_S), tokens_per_minute=self._most)
        requests = asked if math.isinf(rate) else min(entry.credit, asked)
        tokens = math.inf if math.isinf(self._tokens_per_s) else min(entry.credit_tokens, entry.want_tokens)
        entry.credit, entry.want = max(entry.credit - requests, 0), asked - requests
        entry.credit_tokens = max(entry.credit_tokens - tokens, 0.0)
        entry.want_tokens = max(entry.want_tokens - tokens, 0.0)
        over_s = min(SPREAD_S, requests * hungry / rate)
        return Grant(
            route, requests, tokens, 0.0, over_s, 0.0, self._again_s(entry, rate), tokens_per_minute=self._most
        )

    def _again_s(self, entry: _Worker, rate: float) -> float:
        """When asking again is worth while: a small limit gives a request only now and then."""
        if not entry.want:
            return LEASE_S
        return min(max(LEASE_S, (1 - self._over) / rate), KEEPALIVE_S)

    def _announce(self, limit: Limit) -> None:
        """A limit that the provider told; the profile's own word wins."""
        if limit.requests_per_minute is not None and self._known.requests_per_minute in (None, math.inf):
            self.pace.announce(limit.requests_per_minute / 60)
        if limit.tokens_per_minute is not None and self._known.tokens_per_minute is None:
            self._tokens_per_s = OF_LIMIT * limit.tokens_per_minute / 60

    def _divide(self, now: float) -> None:
        """Share out what has accrued since the last time."""
        since = max(self._at, min(self.pace.paused_until, now))
        elapsed_s, self._at = now - since, now
        self._workers = {name: w for name, w in self._workers.items() if now - w.seen_at < SILENT_S}
        workers = list(self._workers.values())
        if not math.isinf(rate := self.pace.rate_per_s):
            self._over = self._share_requests(workers, rate * elapsed_s + self._over, max(1.0, CARRIED_S * rate))
        if not math.isinf(rate := self._tokens_per_s):
            wants = [w.want_tokens - w.credit_tokens for w in workers]
            shares, over = fair_shares(wants, rate * elapsed_s + self._over_tokens)
            for worker, share in zip(workers, shares, strict=True):
                worker.credit_tokens += share
            self._over_tokens = min(over, CARRIED_S * rate)

    def _share_requests(self, workers: list[_Worker], amount: float, keep: float) -> float:
        """Whole requests only: with parts of them all workers would come to a whole one at the same moment. What is
        left goes round."""
        self._turn += 1
        first = self._turn % max(1, len(workers))
        order = workers[first:] + workers[:first]
        shares, _ = fair_shares([w.want - w.credit for w in order], amount)
        for worker, share in zip(order, shares, strict=True):
            worker.credit += int(share)
        left = amount - sum(int(share) for share in shares)
        for worker in order:
            if left >= 1 and worker.want > worker.credit:
                worker.credit, left = worker.credit + 1, left - 1
        return min(left, keep)


def _lower(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return min(known, default=None)


def fair_shares(wants: Sequence[float], amount: float) -> tuple[list[float], float]:
    """Max-min fair division: nobody gets more than wanted, and what one does not want goes to the others. (shares,
    rest)"""
    shares, left = [0.0] * len(wants), amount
    hungry = sorted((k for k, want in enumerate(wants) if want > 0), key=lambda k: wants[k])
    for done, k in enumerate(hungry):
        shares[k] = max(0.0, min(wants[k], left / (len(hungry) - done)))
        left -= shares[k]
    return shares, left


# ---------------------------------------------------------------- all routes


class Rates:
    """The flows of all routes, each begun with the first report on it. `limits` are those that are known: for
    (provider, model), else for (provider, "*"), else `otherwise`. Not thread-safe."""

    def __init__(self, limits: Mapping[Route, Limit] | None = None, otherwise: Limit = UNKNOWN):
        self._limits, self._otherwise = dict(limits or {}), otherwise
        self._flows: dict[Route, Flow] = {}

    def exchange(self, worker: str, reports: Sequence[Report], now: float) -> list[Grant]:
        """Take in what `worker` reports, and grant it what it may send until it asks again, report by report."""
        grants = list[Grant]()
        for report in reports:
            flow = self._flow(report.route, now)
            flow.report(worker, report, now)
            grants.append(flow.grant(worker, report.route, now))
        return grants

    def tell(self, route: Route, limit: Limit, now: float) -> None:
        """Somebody knows this limit of `route`: where several are told, the lowest holds."""
        if route in self._flows:
            self._flows[route].tell(limit)
        else:
            self._flows[route] = Flow(limit, now)

    def limit(self, route: Route) -> Limit:
        """What is known of `route` beforehand."""
        return self._limits.get(route) or self._limits.get((route[0], "*")) or self._otherwise

    def _flow(self, route: Route, now: float) -> Flow:
        if route not in self._flows:
            self._flows[route] = Flow(self.limit(route), now)
        return self._flows[route]

    def per_s(self) -> dict[Route, float]:
        """Requests a second that each route is paced at now."""
        return {route: flow.pace.rate_per_s for route, flow in self._flows.items()}
