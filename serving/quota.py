"""The authority that all workers of a run ask before they send: rates (`serving.rates`), and the run's dollars.

There is one `Authority` a run. Where it is, nobody who asks it knows: in this process (`Here`), or a Ray actor
(`cluster.quota`); both are a `Quota`. The dollars of a worker that dies stay spent, for its calls may have been billed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from serving.budget import Budget
from serving.prices import Prices
from serving.rates import UNKNOWN, Grant, Limit, Rates, Report, Route

DEAD_S = 10.0
"""After so long its open calls are no longer waited for. A living one reports every second."""


class Quota(Protocol):
    """What a client needs: prices, whether dollars are capped, and somebody to report to."""

    @property
    def prices(self) -> Prices: ...

    @property
    def capped(self) -> bool: ...

    async def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        """Raises OSError when the authority is gone."""


# ---------------------------------------------------------------- the authority


@dataclass
class Asked:
    """What went to one route in this run: requests sent, what they cost, and how many of them have no known price."""

    sent: int = 0
    paid_usd: float = 0.0
    unpriced: int = 0


class Authority:
    """Decides for all workers of one run: rates and dollars. `limits`, `otherwise`: as in `Rates`. Not thread-safe; the
    caller brings the time. Where somebody else decides on the rates, that comes between `account` and `afford`."""

    def __init__(
        self,
        limits: Mapping[Route, Limit] | None = None,
        max_usd: float | None = None,
        otherwise: Limit = UNKNOWN,
    ):
        self.budget, self.rates = Budget(max_usd), Rates(limits, otherwise)
        self._seen_at: dict[str, float] = {}
        self.asked: dict[Route, Asked] = {}

    def exchange(self, worker: str, reports: Sequence[Report], now: float) -> list[Grant]:
        """Take in what `worker` reports, and grant it what it may do until it asks again."""
        self.account(worker, reports, now)
        return self.afford(worker, reports, self.rates.exchange(worker, reports, now), now)

    def account(self, worker: str, reports: Sequence[Report], now: float) -> None:
        """Count what was sent and settle what was paid."""
        self._seen_at[worker] = now
        for report in reports:
            self.budget.settle(worker, report.usd_paid, report.usd_freed)
            self.budget.unpriced += report.unpriced
            asked = self.asked.setdefault(report.route, Asked())
            asked.sent += report.sent
            asked.paid_usd += report.usd_paid
            asked.unpriced += report.unpriced

    def afford(self, worker: str, reports: Sequence[Report], grants: Sequence[Grant], now: float) -> list[Grant]:
        """The grants on these reports, with the dollars that are set aside for them."""
        alive = frozenset(name for name, at in self._seen_at.items() if now - at < DEAD_S)
        return [self._afford(worker, report, grant, alive) for report, grant in zip(reports, grants, strict=True)]

    def _afford(self, worker: str, report: Report, grant: Grant, alive: frozenset[str]) -> Grant:
        usd = self.budget.reserve(worker, report.usd_want, report.usd_least, alive)
        if usd == grant.usd and self.budget.spent is None:
            return grant
        return replace(grant, usd=usd, spent=self.budget.spent)


@dataclass
class Here:
    """The authority in this process, for any number of threads. `clock`: any monotonic one, in seconds."""

    authority: Authority = field(default_factory=lambda: Authority(otherwise=Limit(math.inf)))
    prices: Prices = field(default_factory=Prices)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def capped(self) -> bool:
        return self.authority.budget.capped

    async def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        with self._lock:
            return self.authority.exchange(worker, reports, self.clock())
