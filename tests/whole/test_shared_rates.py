"""Runs on one Ray ask for their rates in one place. Real actors; two of the runs are processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster.profile import Profile
from cluster.quota import RunQuota, WorkersEnd
from cluster.rates import IDLE_S, NAME, NAMESPACE, ClusterRates, keys_of
from serving.prices import Prices
from serving.rates import Limit, Report, Route
from tests.cluster import environment

ROUTE: Route = ("mine", "model")
PER_S = 50
LIMITS = {ROUTE: Limit(60 * PER_S)}
KEYS = {"mine": "https://host/v1 0123"}
ASKS_S = 6.0

RUN = """
import asyncio, json, sys, time
import ray
from tests.whole.test_shared_rates import KEYS, LIMITS, ask_for
from cluster.quota import RunQuota
from serving.prices import Prices
ray.init(address=sys.argv[1], log_to_driver=False)
quota = RunQuota(1, LIMITS, Prices(), keys=KEYS)
granted, began, ended = asyncio.run(ask_for(quota.ask(), sys.argv[2], until=float(sys.argv[3])))
told = quota.look().asked[("mine", "model")].sent
print(json.dumps({"granted": granted, "began": began, "ended": ended, "told": told}))
"""


async def ask_for(end: WorkersEnd, worker: str, until: float) -> tuple[int, float, float]:
    """Always hungry: (what was granted, when it began, when it ended)."""
    granted = last = 0
    (grant,) = await end.exchange(worker, [Report(ROUTE, want=1000)])  # everything is up
    began = time.time()
    while time.time() < until:
        (grant,) = await end.exchange(worker, [Report(ROUTE, want=1000, sent=last)])
        last = grant.requests
        granted += last
        await asyncio.sleep(0.1)
    return granted, began, time.time()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import ray

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def alone(address: str) -> Iterator[str]:
    """Nobody has asked before."""
    _end_rates()
    yield address
    _end_rates()


def _end_rates() -> None:
    import ray

    try:
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE))
    except ValueError:  # there is none
        return
    while _is_up():
        time.sleep(0.1)


def _is_up() -> bool:
    import ray

    return {"name": NAME, "namespace": NAMESPACE} in ray.util.list_named_actors(all_namespaces=True)


def test_two_runs_get_together_what_the_key_is_allowed(alone: str) -> None:
    until = time.time() + 15 + ASKS_S
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, alone, name, str(until)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        )
        for name in ("a", "b")
    ]
    said = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    together_s = max(run["ended"] for run in said) - min(run["began"] for run in said)
    assert sum(run["granted"] for run in said) <= PER_S * together_s + 5
    assert sum(run["granted"] for run in said) >= 0.5 * PER_S * together_s
    assert all(run["told"] > 0 for run in said), "each counts what is its own"


def test_what_one_run_hears_the_others_heed(alone: str) -> None:
    def run(keys: dict[str, str]) -> WorkersEnd:
        return RunQuota(1, LIMITS, Prices(), keys=keys).ask()

    async def pause_s(end: WorkersEnd, report: Report) -> float:
        return (await end.exchange("w", [report]))[0].pause_s

    async def pauses() -> list[float]:
        first, second, stranger = run(KEYS), run(KEYS), run({"mine": "https://host/v1 another key"})
        await pause_s(first, Report(ROUTE, want=5, limited=((0.1, 1),), retry_after_s=60.0))
        return [await pause_s(end, Report(ROUTE, want=5)) for end in (first, second, stranger)]

    first, second, stranger = asyncio.run(pauses())
    assert 50 < second <= first <= 60
    assert stranger == 0


def test_a_run_goes_on_when_the_rates_are_lost(alone: str) -> None:
    async def granted() -> int:
        end = RunQuota(1, {ROUTE: Limit(6000)}, Prices(), max_usd=1.0, keys=KEYS).ask()
        await end.exchange("w", [Report(ROUTE, want=5, usd_paid=0.75)])
        _end_rates()
        await end.exchange("w", [Report(ROUTE, want=5, usd_want=0.5, usd_least=0.5)])
        await asyncio.sleep(0.2)
        (grant,) = await end.exchange("w", [Report(ROUTE, want=5, usd_want=0.5, usd_least=0.5)])
        assert grant.usd == 0, "what was spent is the run's, and is not forgotten"
        assert grant.spent is not None
        return grant.requests

    assert asyncio.run(granted()) > 0


def test_it_goes_when_nobody_asks_any_more(alone: str) -> None:
    import ray

    assert IDLE_S >= 60
    options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(num_cpus=0)(ClusterRates).options(**options).remote(0.8)
    for _ in range(3):
        ray.get(actor.exchange.remote("w", [(Report(ROUTE, want=1), Limit())]))
        time.sleep(0.3)
        assert _is_up()
    until = time.monotonic() + 60
    while _is_up() and time.monotonic() < until:
        time.sleep(0.1)
    assert not _is_up()


def test_a_key_is_told_apart_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile.model_validate(
        {
            "providers": {
                "one": {"base_url": "https://host/v1", "key_env": "ONE"},
                "same": {"base_url": "https://host/v1", "key_env": "SAME"},
                "other": {"base_url": "https://host/v1", "key_env": "OTHER"},
                "ours": {"engine": "folder"},
            }
        }
    )
    for name, key in {"ONE": "sk-1", "SAME": "sk-1", "OTHER": "sk-2"}.items():
        monkeypatch.setenv(name, key)
    keys = keys_of(profile, ["embedded", "one", "same", "other", "ours"])
    assert set(keys) == {"one", "same", "other"}
    assert keys["one"] == keys["same"] != keys["other"]
    assert not any("sk-" in key for key in keys.values())
