"""A reply that was paid for is never asked for again: across kill -9, runs one after the other, and runs at once.

On a folder and on a real S3 server. The scripted server counts; the job is a process of its own (`tests.asking_job`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from empathy.store import Store
from serving.ledger import Ledger
from serving.scripted import Faults, Scripted, request_id
from tests.asking_job import request
from tests.s3 import s3_server, store

__all__ = ["s3_server", "store"]  # fixtures
LATENCY_S, IN_FLIGHT, REQUESTS = 0.3, 16, 200
GRACE_S = 1.0


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(Faults(latency_s=LATENCY_S)) as running:
        yield running


def counts(server: Scripted) -> dict[str, Any]:
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/counts") as response:
        found: dict[str, Any] = json.loads(response.read())
        return found


def job(
    server: Scripted, store: Store, first: int, count: int, in_flight: int = IN_FLIGHT, turns: int = 1
) -> subprocess.Popen[str]:
    words = [server.url, store.url, json.dumps(store.options), *map(str, (first, count, in_flight, turns))]
    return subprocess.Popen([sys.executable, "-m", "tests.asking_job", *words], stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Rows, calls and replies from the ledger of a job that ends by itself."""
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    rows, calls, known = map(int, said.split())
    return rows, calls, known


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "waited for 100 s"
        time.sleep(0.02)


def test_three_kills_pay_only_for_what_was_in_flight(store: Store, server: Scripted) -> None:
    keys = {request_id(request(k).body): request(k).key for k in range(REQUESTS)}
    moments, safe, at_risk = random.Random(os.urandom(8)), dict[str, int](), 0
    for _ in range(3):
        before = counts(server)["total"]
        process = job(server, store, 0, REQUESTS)
        wanted = before + moments.randint(1, 60)
        until(lambda wanted=wanted: counts(server)["total"] >= wanted)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 2 * LATENCY_S))
        process.send_signal(signal.SIGKILL)
        killed_at = time.time()
        process.communicate()
        found = counts(server)
        finished = [ident for ident, at in found["finished"] if at <= killed_at - GRACE_S]
        safe = {ident: found["asked"][ident] for ident in finished} | safe
        at_risk += IN_FLIGHT
        with Ledger(store.files) as ledger:
            assert [i for i in finished if keys[i] not in ledger] == []
    assert ended(job(server, store, 0, REQUESTS))[0] == REQUESTS
    found = counts(server)
    assert found["distinct"] == REQUESTS
    assert found["total"] <= REQUESTS + at_risk
    assert {ident: found["asked"][ident] for ident in safe} == safe  # not asked again since


def test_without_kills_each_request_is_sent_once_and_a_second_run_sends_none(store: Store, server: Scripted) -> None:
    assert ended(job(server, store, 0, REQUESTS, in_flight=64)) == (REQUESTS, REQUESTS, 0)
    assert ended(job(server, store, 100, REQUESTS, in_flight=64)) == (REQUESTS, 100, 100)
    found = counts(server)
    assert (found["total"], found["distinct"]) == (300, 300)


def test_two_runs_at_once_share_their_requests(store: Store, server: Scripted) -> None:
    first, second = job(server, store, 0, 150), job(server, store, 50, 150)
    done = ended(first), ended(second)
    assert [rows for rows, _, _ in done] == [150, 150]
    assert sum(calls for _, calls, _ in done) == REQUESTS
    found = counts(server)
    assert (found["total"], found["distinct"]) == (REQUESTS, REQUESTS)


def test_requests_that_follow_from_replies_are_shared_too(store: Store, server: Scripted) -> None:
    first, second = job(server, store, 0, 30, turns=3), job(server, store, 10, 30, turns=3)
    assert [ended(p)[0] for p in (first, second)] == [30, 30]
    found = counts(server)
    assert (found["total"], found["distinct"]) == (120, 120)


def test_whoever_waits_for_a_killed_run_takes_over(store: Store, server: Scripted) -> None:
    first = job(server, store, 0, 100, in_flight=4)
    until(lambda: counts(server)["total"] >= 5)
    second = job(server, store, 0, 100)
    until(lambda: len(counts(server)["finished"]) >= 12)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    rows, calls, known = ended(second)
    assert (rows, calls + known) == (100, 100)
    assert known > 0
    assert counts(server)["total"] <= 100 + 4
