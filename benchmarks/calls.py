"""Calls at a provider's rate limit: several worker processes, one quota on Ray. `python -m benchmarks.calls [--quick]`

The limit is the provider's: 1,000 requests a second, each answered after 500 ms, 429 for what comes too early
(`benchmarks.provider`). Bars: a known limit is used to 95% with at most 0.5% of 429s; an unknown one to 90% after
15 s, and again 15 s after it changes (halved, then doubled); 0.5 ms of CPU a call, ledger included. Then two runs ask
at once and both are told the limit: as on a cluster, where they share their pace, and as on machines that do not know
of each other. The workers, the quota and the provider share this machine: `machine_busy` near 1 says that its CPU was
the limit, not the provider.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.ledger import PROMPT
from benchmarks.provider import counts, provider
from empathy.records import Turn
from empathy.requests import Answer, Asking, Request
from serving.limits import Limits
from serving.quota import Quota
from serving.rates import Limit

LATENCY_S = 0.5
ROUTE = ("canned", "canned")


class Worker:
    """One process that asks as fast as it is let, for a while."""

    def __init__(self, folder: str, number: int):
        self._folder, self._number = folder, number

    def ready(self) -> None:
        """Load what asking needs: a run pays for that once."""
        import serving.client  # noqa: F401

    def ask(self, url: str, quota: Quota, in_flight: int, seconds: float, series: str) -> dict[str, float]:
        """What it cost."""
        from empathy.files import open_files
        from serving.client import Counts, drive
        from serving.ledger import Ledger
        from serving.providers import Provider

        said, until = Counts(), time.monotonic() + seconds

        def asking(number: int) -> Asking[Answer]:
            text = f"{PROMPT}My dog number {number} of {series} and {self._number} died."
            return (yield Request(*ROUTE, (Turn("user", text),)))

        def askings() -> Iterator[tuple[str, Asking[Answer]]]:
            number = 0
            while time.monotonic() < until:
                number += 1
                yield str(number), asking(number)

        async def work() -> None:
            place = Provider(ROUTE[0], url)
            with Ledger(open_files(self._folder)) as ledger:
                async for _ in drive(askings(), place, ledger, in_flight, said, quota):
                    pass

        began_s = time.process_time()
        asyncio.run(work())
        return {"cpu_s": time.process_time() - began_s, "calls": said.calls, "answers": said.calls - said.limited}


def share(tenths: list[list[int]], since_s: float, until_s: float, per_s: float) -> float:
    """Accepted requests of those that the limit allowed in this time."""
    return sum(accepted for accepted, _ in tenths[int(since_s * 10) : int(until_s * 10)]) / (
        per_s * (until_s - since_s)
    )


def turned_away(tenths: list[list[int]], since_s: float, until_s: float) -> float:
    """The share of 429s among all requests of this time."""
    some = tenths[int(since_s * 10) : int(until_s * 10)]
    return sum(limited for _, limited in some) / max(1, sum(map(sum, some)))


def measure(
    name: str,
    limits: Limits,
    told: Limit,
    spans: Mapping[str, tuple[float, float, float]],
    workers: list[Any],
    runs: int = 1,
    key: str | None = None,
) -> list[dict[str, Any]]:
    """Run all workers against a provider with `limits`, of which they are `told`. `spans`: what -> (since, until,
    limit) in seconds and requests a second. Workers belong to `runs` runs in turn, which share their pace if a `key`
    is given."""
    import psutil
    import ray

    from cluster.quota import RunQuota
    from serving.prices import Prices

    seconds = max(until for _, until, _ in spans.values())
    in_flight = math.ceil(1.4 * limits.per_s * (LATENCY_S + 0.15) / len(workers))
    keys = {ROUTE[0]: key} if key else {}
    quotas = [RunQuota(len(workers), {ROUTE: told}, Prices(), keys=keys).ask() for _ in range(runs)]
    asking = [(worker, quotas[k % runs]) for k, worker in enumerate(workers)]
    with provider(limits, LATENCY_S) as url:
        psutil.cpu_percent()
        costs = ray.get([worker.ask.remote(url, quota, in_flight, seconds + 0.5, name) for worker, quota in asking])
        busy, served = psutil.cpu_percent() / 100, counts(url)
    cpu_ms = sum(cost["cpu_s"] for cost in costs) / sum(cost["answers"] for cost in costs) * 1000
    return [
        {
            "what": f"{name} {what}".strip(),
            "limit_per_s": per_s,
            "span_s": f"{since:g}-{until:g}",
            "share": share(served["tenths"], since, until, per_s),
            "share_429": turned_away(served["tenths"], since, until),
            "cpu_ms_per_call": cpu_ms,
            "provider_cpu_ms": served["cpu_s"] / sum(map(sum, served["tenths"])) * 1000,
            "machine_busy": busy,
        }
        for what, (since, until, per_s) in spans.items()
    ]


def at_rate(per_s: float, workers: list[Any], quick: bool) -> list[dict[str, Any]]:
    """A known limit, then an unknown one that is halved and doubled again, then a known one for two runs."""
    known_s, change_s = (10.0, 22.0) if quick else (30.0, 30.0)
    half = per_s / 2
    changes = ((change_s, half), (2 * change_s, per_s))
    spans = {
        "found": (15.0, change_s, per_s),
        "halved": (change_s + 15, 2 * change_s, half),
        "doubled": (2 * change_s + 15, 3 * change_s, per_s),
    }
    told = Limit(requests_per_minute=60 * per_s)
    return [
        *measure("known", Limits(per_s), told, {"": (2.0, known_s, per_s)}, workers),
        *measure("unknown", Limits(per_s, changes=changes), Limit(), spans, workers),
        *measure("two runs", Limits(per_s), told, {"": (2.0, known_s, per_s)}, workers, 2, "the key of both"),
        *measure("two runs apart", Limits(per_s), told, {"": (2.0, known_s, per_s)}, workers, 2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter spans")
    parser.add_argument("--per-s", type=float, default=1000.0, help="the provider's limit, requests a second")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    import ray

    from cluster.profile import Profile
    from cluster.session import ray_session

    build = Path("build/benchmarks").absolute()
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as folder, ray_session(Profile()):
        actor = ray.remote(num_cpus=1)(Worker)
        workers = [actor.remote(folder, number) for number in range(options.workers)]
        ray.get([worker.ready.remote() for worker in workers])
        rows = at_rate(options.per_s, workers, options.quick)
    figures: dict[str, float] = {}
    for row in rows:
        name = row["what"].replace(" ", "_")
        figures |= {f"{name}_share": row["share"], f"{name}_429": row["share_429"]}
    figures |= {"cpu_ms_per_call": rows[0]["cpu_ms_per_call"], "machine_busy": max(row["machine_busy"] for row in rows)}
    report("calls", rows, figures, ("aiohttp", "orjson", "ray"))


if __name__ == "__main__":
    main()
