"""The run's quota: one authority for all its workers, in this process or as an actor on Ray.

`run_quota` is called once a run (jobs/run), travels in `Context.quota`, and gives workers their end of it
(`RunQuota.ask`). Two runs at once do not know of each other: each paces itself by its own 429s, and a limit that the
profile tells has to be divided by hand. Their replies are shared all the same, through the ledger.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster.profile import EMBEDDED, Profile
from cluster.providers import models
from empathy.stages import Stage
from serving.budget import BudgetSpent, Spending, unpriced
from serving.prices import Prices
from serving.quota import Authority, Grant, Here, Limit, Quota, Report, Route


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


class _Actor:
    """The authority and a clock, in a process of its own."""

    def __init__(self, limits: Mapping[Route, Limit], max_usd: float | None):
        self._authority = Authority(limits, max_usd)

    def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        return self._authority.exchange(worker, reports, time.monotonic())

    def spending(self) -> tuple[Spending, str | None]:
        return self._authority.budget.spending, self._authority.budget.spent


class RunQuota:
    """What all workers of one run ask. `workers` as in the profile's [ask]: 0 keeps it in this process; else it is an
    actor, started by whoever asks for it first, when Ray is up."""

    def __init__(self, workers: int, limits: Mapping[Route, Limit], prices: Prices, max_usd: float | None = None):
        self._workers, self._limits, self._prices, self._max_usd = workers, limits, prices, max_usd
        self._lock = threading.Lock()
        self.spent: str | None = None
        self.spending = Spending(max_usd, 0.0, 0.0, 0)  # as of the last `look`
        self._here: Here | None = Here(Authority(limits, max_usd), prices) if not workers else None
        self._on_ray: OnRay | None = None

    def ask(self) -> Quota:
        """For one worker, or many. Raises BudgetSpent when the cap is reached: then nothing needs to be started."""
        self.look()
        if self.spent is not None:
            raise BudgetSpent(self.spent)
        if self._here is not None:
            return self._here
        with self._lock:
            self._on_ray = self._on_ray or OnRay(self._start(), self._prices, self._max_usd is not None)
            return self._on_ray

    def look(self) -> Spending:
        """Dollars of this run so far. They stay in `spending` when Ray has ended."""
        if self._here is not None:
            budget = self._here.authority.budget
            self.spending, self.spent = budget.spending, budget.spent
        elif self._on_ray is not None:
            import ray
            from ray.exceptions import RayActorError

            with suppress(RayActorError):  # it is gone, and whoever needs it is told by OnRay.exchange
                self.spending, self.spent = ray.get(self._on_ray.actor.spending.remote())
        return self.spending

    def _start(self) -> Any:
        """On the node of the driver: if that is lost, so is the run."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        actor = ray.remote(num_cpus=0, max_restarts=0)(_Actor)
        name = f"quota-{uuid.uuid4().hex[:8]}"
        return actor.options(name=name, scheduling_strategy=there).remote(dict(self._limits), self._max_usd)


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
    return RunQuota(profile.ask.workers, limits(profile, asked), prices, max_usd)
