"""One pace for all runs of a Ray cluster that ask the same provider with the same key.

What a provider allows it allows a key, whoever uses it. Where Ray is a cluster that others may use too, the rates of
runs are decided by one detached actor for all of them (`serving.rates`); their dollars, and how far they are, stay
theirs (`cluster.quota`). The actor is started by the run that asks first, is found by its name, and goes ten minutes
after the last one asked. A run that finds it lost starts it anew: what had been found of limits is found again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.profile import EMBEDDED, Profile
from serving.rates import Grant, Limit, Rates, Report, Route

NAMESPACE, NAME = "empathy", "rates-1"
"""The number goes up when what is told and granted changes its form: runs of both forms may meet on a cluster."""
IDLE_S = 600.0
TRIES, AGAIN_S = 20, 0.5


class ClusterRates:
    """The flows of a cluster's routes and a clock, in a process of its own."""

    def __init__(self, idle_s: float = IDLE_S):
        import ray

        self._rates, self._idle_s, self._asked_at = Rates(), idle_s, time.monotonic()
        self._itself = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, name="leave when idle", daemon=True).start()

    def exchange(self, worker: str, told: Sequence[tuple[Report, Limit]]) -> list[Grant]:
        """`Rates.exchange`, for reports of runs that know these limits."""
        self._asked_at = now = time.monotonic()
        for report, limit in told:
            self._rates.tell(report.route, limit, now)
        return self._rates.exchange(worker, [report for report, _ in told], now)

    def _watch(self) -> None:
        """Ends it when nobody has asked for long. Who asks at that moment starts it anew."""
        import ray

        while time.monotonic() - self._asked_at < self._idle_s:
            time.sleep(self._idle_s / 10)
        ray.kill(self._itself)


class SharedRates:
    """A run's end of it. `keys`: by provider, whose limits they are (`keys_of`); `limits` as the run's profile tells
    them."""

    def __init__(self, keys: Mapping[str, str], limits: Mapping[Route, Limit]):
        self._keys, self._told = dict(keys), Rates(limits)
        self._actor: Any = None

    def has(self, route: Route) -> bool:
        return route[0] in self._keys

    async def exchange(self, worker: str, reports: Sequence[Report]) -> list[Grant]:
        """`Rates.exchange`, over all runs. Raises OSError when the cluster lets no such actor live."""
        from ray.exceptions import RayActorError

        told = [
            (replace(report, route=(self._keys[report.route[0]], report.route[1])), self._told.limit(report.route))
            for report in reports
        ]
        for _ in range(TRIES):
            self._actor = self._actor or _actor()
            try:
                grants: list[Grant] = await self._actor.exchange.remote(worker, told)
            except RayActorError:  # it left, or its machine was lost; its name is free again a little later
                self._actor = None
                await asyncio.sleep(AGAIN_S)
            else:
                return [replace(grant, route=report.route) for grant, report in zip(grants, reports, strict=True)]
        raise OSError(f"the cluster's rates (actor {NAME!r}, namespace {NAMESPACE!r}) do not stay up: start again")


def _actor() -> Any:
    import ray

    options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(num_cpus=0, max_restarts=0)(ClusterRates).options(**options).remote()


def keys_of(profile: Profile, names: Iterable[str]) -> dict[str, str]:
    """By provider of `names` that is somebody else's server: its address and a digest of the key, never the key."""
    found = dict[str, str]()
    for name in names:
        if name == EMBEDDED or (place := profile.provider(name)).engine:
            continue
        key = os.environ.get(place.key_env, "") if place.key_env else ""
        found[name] = f"{place.base_url} {hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return found
