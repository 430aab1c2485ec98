"""Stages through a provider's batch API: the artifact of the synchronous path, whatever befalls batches or us."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import providers, runner
from cluster.profile import Asking, Profile, ProviderPlace
from cluster.progress import Progress
from empathy.lower import lower
from empathy.records import Reply
from empathy.store import Store
from jobs import choose
from serving import batch_notes
from serving.providers import ProviderDown
from serving.scripted import request_id
from tests.batch_job import make, provider, teaching
from tests.experiments import tiny
from tests.fake_batches import FakeBatches, Faults
from tests.s3 import s3_server, store

__all__ = ["s3_server", "store"]  # fixtures
ROWS, PART_ROWS, BATCH_ROWS = 40, 7, 9
PATIENCE_S = 120


@pytest.fixture
def fake() -> Iterator[FakeBatches]:
    with FakeBatches() as server:
        yield server


def synchronously(
    fake: FakeBatches, folder: Path, rows: int = ROWS, turns: int = 2
) -> tuple[list[Reply], dict[str, int]]:
    """The records and counts of the same stage, asked at once."""
    there = Store.open(str(folder))
    stage = teaching(there, rows, PART_ROWS, turns)
    make(stage, there, replace(provider(fake.url), batch=None))
    return list(there.get(stage).read(Reply)), dict(there.get(stage).counts)


def test_the_artifact_is_that_of_the_synchronous_path(fake: FakeBatches, tmp_path: Path) -> None:
    expected, counts = synchronously(fake, tmp_path / "at_once")
    there, said = Store.open(str(tmp_path / "batched")), list[str]()
    stage = teaching(there, ROWS, PART_ROWS)
    make(stage, there, provider(fake.url, requests=BATCH_ROWS), said)
    assert list(there.get(stage).read(Reply)) == expected
    assert dict(there.get(stage).counts) == counts
    assert [p.rows for p in there.get(stage).parts] == [7, 7, 7, 7, 7, 5]
    found = fake.counts()
    assert set(found["billed"].values()) == {1}
    assert len(found["billed"]) == sum(found["sizes"]) == 2 * ROWS
    assert any("requests to" in line for line in said)


def test_stages_share_batches_and_a_second_run_makes_none(fake: FakeBatches, tmp_path: Path) -> None:
    from cluster.steps.asking import Job, ask_all
    from empathy import replies

    there = Store.open(str(tmp_path))
    one, two = teaching(there, ROWS, PART_ROWS, turns=1), teaching(there, ROWS, PART_ROWS, turns=2)
    parts = (7, 7, 7, 7, 7, 5)
    jobs = [Job(stage, Reply, replies.askings, parts) for stage in (one, two)]
    ask_all(jobs, there, {"fake": provider(fake.url)}, 0, 8, lambda *_: None, say=lambda _: None)
    assert fake.counts()["sizes"] == [ROWS, ROWS]  # both first turns are one request; then the second turn
    again = teaching(Store.open(str(tmp_path)), ROWS, PART_ROWS, turns=2)
    make(again, there, provider(fake.url))
    assert fake.counts()["sizes"] == [ROWS, ROWS]


@pytest.mark.parametrize("fates", [("expire", "partial", "rows", "expire_all"), ("fail", "expire", "lose")])
def test_bad_batches_make_the_same_artifact(fates: tuple[Any, ...], fake: FakeBatches, tmp_path: Path) -> None:
    expected, _ = synchronously(fake, tmp_path / "at_once")
    fake.reset(Faults(work_s=0.05, fates=fates, control_share=0.1, create_lost_share=0.2, torn_downloads=1))
    there = Store.open(str(tmp_path / "batched"))
    stage = teaching(there, ROWS, PART_ROWS)
    make(stage, there, provider(fake.url, requests=BATCH_ROWS), [])
    made, refused = list(there.get(stage).read(Reply)), 0
    for reply, other in zip(made, expected, strict=True):
        if reply.dropped and "HTTP 400" in reply.dropped:  # "rows" refuses some for good
            refused += 1
        else:
            assert reply == other
    assert (refused > 0) == ("rows" in fates)
    found = fake.counts()
    assert all(n - found["excused"].get(ident, 0) == 1 for ident, n in found["billed"].items())


def test_a_run_whose_profile_says_batch_asks_in_batches(fake: FakeBatches, tmp_path: Path) -> None:
    """From the profile's table to the provider's bill: nothing is asked at once, at its full price."""
    lowered = lower(tiny(tmp_path, teacher__provider="fake"))
    place = ProviderPlace(base_url=fake.url, batch=True, batch_poll_s=0.05)
    profile = Profile(store=str(tmp_path / "store"), ask=Asking(workers=0), providers={"fake": place})
    targets, there = choose.targets(lowered, "replies"), profile.open_store()
    with providers.ready(runner.to_make(targets, there), profile) as places:
        context = runner.Context(there, profile, Progress(out=lambda line: None), places, "tiny")
        assert not runner.run(targets, context).failures
    found = fake.counts()
    assert (sum(found["sizes"]), found["at_once"]) == (sum(there.get(t).counts.get("calls", 0) for t in targets), {})
    assert found["sizes"]


# ---------------------------------------------------------------- kills


def job(fake: FakeBatches, store: Store) -> subprocess.Popen[str]:
    words = [fake.url, store.url, json.dumps(store.options), *map(str, (ROWS, PART_ROWS, BATCH_ROWS))]
    return subprocess.Popen([sys.executable, "-m", "tests.batch_job", *words], stdout=subprocess.PIPE, text=True)


def killed(fake: FakeBatches, store: Store, after: int, pause_s: float) -> None:
    """Start a run and kill it once the provider has had `after` more control calls."""
    before = sum(fake.counts()["calls"].values())
    process = job(fake, store)
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and sum(fake.counts()["calls"].values()) < before + after:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.long
def test_kills_at_random_moments_pay_nothing_twice(store: Store, fake: FakeBatches, tmp_path: Path) -> None:
    """Seven kills: after an upload, a creation, in polling, in a download; two batches are lost or expire besides."""
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    expected, _ = synchronously(fake, tmp_path / "at_once")
    fake.reset(Faults(work_s=0.4, fates=("", "expire", "", "lose", "partial"), create_lost_share=0.1, seed=seed))
    for _ in range(7):
        killed(fake, store, moments.randint(1, 14), moments.uniform(0, 0.05))
    last = job(fake, store)
    said, _ = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, f"seed {seed}: {said}"
    stage, found = teaching(store, ROWS, PART_ROWS), fake.counts()
    assert list(store.get(stage).read(Reply)) == expected, f"seed {seed}"
    twice = {i: n for i, n in found["billed"].items() if n - found["excused"].get(i, 0) != 1}
    assert not twice, f"seed {seed}: {twice}"
    assert len(found["notes"]) == len(set(found["notes"])), f"seed {seed}: a batch was made twice"
    assert batch_notes.open_notes(store.files) == []


def test_a_run_that_asks_at_once_waits_for_a_batch_that_was_left_open(fake: FakeBatches, tmp_path: Path) -> None:
    """`batch = false` in the profile, after a batch run was killed: the open batch is waited for, not paid again."""
    expected, _ = synchronously(fake, tmp_path / "at_once", turns=1)
    fake.reset(Faults(work_s=4))
    there = Store.open(str(tmp_path / "batched"))
    stage = teaching(there, ROWS, PART_ROWS, turns=1)
    words = [fake.url, there.url, "{}", *map(str, (ROWS, PART_ROWS, 25))]  # of its two turns, the first is our stage's
    process = subprocess.Popen([sys.executable, "-m", "tests.batch_job", *words], stdout=subprocess.PIPE)
    while not fake.counts()["sizes"]:
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    (made, *_) = fake.counts()["sizes"]
    said = list[str]()
    make(stage, there, replace(provider(fake.url), batch=None), said)
    assert list(there.get(stage).read(Reply)) == expected
    found = fake.counts()
    assert sum(found["at_once"].values()) + sum(found["sizes"]) == ROWS
    assert sum(found["sizes"]) >= made == 25
    assert not set(found["at_once"]) & set(found["billed"])
    assert any("of an earlier run: 25 requests" in line for line in said)


def test_a_run_that_stops_leaves_its_batches_and_the_next_goes_on(fake: FakeBatches, tmp_path: Path) -> None:
    there = Store.open(str(tmp_path))
    stage = teaching(there, ROWS, PART_ROWS, turns=1)
    fake.reset(Faults(work_s=1.0, fates=("expire_all",) * 3))
    with pytest.raises(ProviderDown, match="in a row"):
        make(stage, there, provider(fake.url, requests=14), [])
    make(stage, there, provider(fake.url, requests=14), said := [])
    assert there.get(stage).rows == ROWS
    assert set(fake.counts()["billed"].values()) == {1}
    assert said


def test_requests_are_counted_by_their_body(fake: FakeBatches) -> None:
    """What the tests above rest on: both ways bill the same request under the same id."""
    body = {"model": "m", "messages": []}
    assert request_id(body) == request_id(dict(reversed(body.items())))
