"""The run's quota: one authority for all its workers, in this process or as an actor on Ray.

It is what all workers talk to, so it also hears how far each is, and `look` tells the driver.

`run_quota` is called once a run (jobs/run), travels in `Context.quota`, and gives workers their end of it
(`RunQuota.ask`). On a Ray that others may use too, the rates are decided for all its runs together (`cluster.rates`).
Runs that do not meet on a Ray do not know of each other: each paces itself by its own 429s, and a limit that the
profile tells has to be divided by hand. Replies are shared all the same, through the ledger.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cluster.profile import EMBEDDED, Profile
from cluster.providers import models
from cluster.rates import SharedRates, keys_of
from cluster.session import joins_others
from empathy.stages import Stage
from serving.budget import BudgetSpent, Spending, unpriced
from serving.prices import Prices
from serving.quota import Asked, Authority, Here, Quota
from serving.rates import Grant, Limit, Report, Route

LOOK_S = 10.0
"""A look that takes longer is given up: what is known stays."""
Part = tuple[str, int]
"""(stage's key, number of the part)."""


@dataclass(frozen=True)
class Seen:
    """What is known of a run's asking. `asked` by route; `rows`: dialogues that workers have a record of, by stage's
    key; `restarts`: workers that were started again, by the name of their pool; `away`: by provider, that it answers
    nothing and is waited for."""

    spending: Spending
    spent: str | None = None
    asked: Mapping[Route, Asked] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    away: Mapping[str, str] = field(default_factory=dict)


class WorkersEnd(Quota, Protocol):
    """What a worker has of the run's quota. `tell` and `began` return at once."""

    def tell(self, rows: Mapping[Part, int], away: Mapping[str, str], worker: str) -> None:
        """So many rows of these parts have their record; `away` as in `Seen`, as `worker` finds it."""

    def began(self, name: str, pool: str, size: int) -> None:
        """A worker of `pool`, which is called `name` and has `size` workers, has started."""


class _Heard:
    """How far workers are. A part that is made anew after a loss is not counted twice."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, int]] = defaultdict(dict)
        self._began: Counter[tuple[str, str, int]] = Counter()
        self._away: dict[str, Mapping[str, str]] = {}

    def tell(self, rows: Mapping[Part, int], away: Mapping[str, str], worker: str) -> None:
        self._away[worker] = away
        for (key, part), number in rows.items():
            self._rows[key][part] = max(number, self._rows[key].get(part, 0))

    def began(self, name: str, pool: str, size: int) -> None:
        self._began[name, pool, size] += 1

    def seen(self, authority: Authority) -> Seen:
        restarts: Counter[str] = Counter()
        for (name, _, size), number in self._began.items():
            restarts[name] += max(0, number - size)
        rows = {key: sum(parts.values()) for key, parts in self._rows.items()}
        asked = {route: replace(asked) for route, asked in authority.asked.items()}
        away = {name: said for found in self._away.values() for name, said in found.items()}
        return Seen(authority.budget.spending, authority.budget.spent, asked, rows, restarts, away)


class _HereHeard(Here):
    """The authority in this process, which hears how far its workers are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._heard = _Heard()

    def tell(self, rows: Mapping[Part, int], away: Mapping[str, str], worker: str) -> None:
        with self._lock:
            self._heard.tell(rows, away, worker)

    def began(self, name: str, pool: str, size: int) -> None:
        with self._lock:
            self._heard.began(name, pool, size)

    def seen(self) -> Seen:
        with self._lock:
            return self._heard.seen(self.authority)


@dataclass(frozen=True)
class OnRay:
    """A worker's end of an authority that is an actor; small enough to be sent along with the work."""

    actor: Any
    prices: Prices
    capped: bool

    async def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        from ray.exceptions import RayActorError

        try:
            grants: list[Grant] = await self.actor.exchange.remote(worker, reports)
        except RayActorError as error:
            raise OSError(f"the run's quota is gone ({error}): what was answered is kept; start again") from error
        return grants

    def tell(self, rows: Mapping[Part, int], away: Mapping[str, str], worker: str) -> None:
        self.actor.tell.remote(dict(rows), dict(away), worker)

    def began(self, name: str, pool: str, size: int) -> None:
        self.actor.began.remote(name, pool, size)


class _Actor(_Heard):
    """The authority and a clock, in a process of its own. `keys`: of providers whose rates runs on this Ray share."""

    def __init__(self, limits: Mapping[Route, Limit], max_usd: float | None, keys: Mapping[str, str]):
        super().__init__()
        self._authority, self._shared = Authority(limits, max_usd), SharedRates(keys, limits)

    async def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        now, authority = time.monotonic(), self._authority
        shared = [report for report in reports if self._shared.has(report.route)]
        if not shared:
            return authority.exchange(worker, reports, now)
        authority.account(worker, reports, now)
        own = [report for report in reports if not self._shared.has(report.route)]
        grants = authority.rates.exchange(worker, own, now) + await self._shared.exchange(worker, shared)
        return authority.afford(worker, own + shared, grants, time.monotonic())

    def look(self) -> Seen:
        return self.seen(self._authority)


class RunQuota:
    """What all workers of one run ask. `workers` as in the profile's [ask]: 0 keeps it in this process; else it is an
    actor, started by whoever asks for it first, when Ray is up. `keys`: of the providers whose rates all runs on this
    Ray share (`cluster.rates.keys_of`)."""

    def __init__(
        self,
        workers: int,
        limits: Mapping[Route, Limit],
        prices: Prices,
        max_usd: float | None = None,
        keys: Mapping[str, str] | None = None,
    ):
        self._workers, self._limits, self._prices, self._max_usd = workers, limits, prices, max_usd
        self._keys = dict(keys or {})
        self._lock = threading.Lock()
        self.seen = Seen(Spending(max_usd, 0.0, 0.0, 0))
        """As of the last `look`."""
        self._here = _HereHeard(Authority(limits, max_usd), prices) if not workers else None
        self._on_ray: OnRay | None = None

    @property
    def spending(self) -> Spending:
        """Dollars of this run as of the last `look`."""
        return self.seen.spending

    def is_free(self, provider: str, model: str) -> bool:
        """Whether nobody sends a bill for its answers."""
        price = self._prices.of(provider, model)
        return price is not None and not price.usd(1, 1)

    def ask(self) -> WorkersEnd:
        """For one worker, or many. Raises BudgetSpent when the cap is reached: then nothing needs to be started."""
        if (spent := self.look().spent) is not None:
            raise BudgetSpent(spent)
        if self._here is not None:
            return self._here
        with self._lock:
            self._on_ray = self._on_ray or OnRay(self._start(), self._prices, self._max_usd is not None)
            return self._on_ray

    def look(self) -> Seen:
        """How far this run's asking is. What was seen last stays when Ray has ended."""
        if self._here is not None:
            self.seen = self._here.seen()
        elif self._on_ray is not None:
            import ray
            from ray.exceptions import GetTimeoutError, RayActorError

            with suppress(RayActorError, GetTimeoutError):  # who needs the actor is told by `OnRay.exchange`
                self.seen = ray.get(self._on_ray.actor.look.remote(), timeout=LOOK_S)
        return self.seen

    def _start(self) -> Any:
        """On the node of the driver: if that is lost, so is the run."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=0)(_Actor)
        name = f"quota-{uuid.uuid4().hex[:8]}"
        return actor.options(name=name, scheduling_strategy=there).remote(dict(self._limits), self._max_usd, self._keys)


def limits(profile: Profile, names: Iterable[str]) -> dict[Route, Limit]:
    """What the profile tells of the providers `names`: (provider, model), or (provider, "*") for all its other models.
    Nobody limits what the run serves itself."""
    found: dict[Route, Limit] = {}
    for name in names:
        if name == EMBEDDED or (place := profile.provider(name)).engine:
            found[(name, "*")] = Limit(math.inf)
            continue
        found[(name, "*")] = Limit(place.requests_per_minute, place.tokens_per_minute)
        for model, own in place.limits.items():
            found[(name, model)] = Limit(own.requests_per_minute, own.tokens_per_minute)
    return found


def run_quota(pending: Sequence[Stage], profile: Profile, max_usd: float | None = None) -> RunQuota:
    """The quota of a run that is to make `pending`.

    Raises ValueError, before anything is sent, when dollars are capped and the price of a model is unknown.
    """
    asked, prices = models(pending), profile.price_list
    unknown = [(name, model) for name in sorted(asked) for model in sorted(asked[name]) if not prices.of(name, model)]
    if max_usd is not None and unknown:
        raise unpriced(unknown)
    keys = keys_of(profile, asked) if joins_others(profile) else {}
    return RunQuota(profile.ask.workers, limits(profile, asked), prices, max_usd, keys)
