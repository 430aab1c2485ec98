"""Teacher replies through workers: parts, order, counts, resuming, and what one bad row costs."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.quota import RunQuota
from cluster.steps import asking
from cluster.steps.asking import Job, ask, ask_all
from empathy import replies
from empathy.records import Dialogue, Reply, Turn
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from empathy.store import Store
from serving.budget import BudgetSpent
from serving.ledger import Ledger
from serving.prices import Price, Prices
from serving.providers import Provider, ProviderDown, ProviderStopped
from serving.rates import Limit
from serving.scripted import Faults, Scripted
from tests.cluster import named

PARTS, PART_ROWS = 3, 5
SAID = [
    "My dog died last week.",
    "I lost my job today.",
    "I won the race!",
    "My sister ignores me.",
    "I failed my exam.",
]


def dialogues(store: Store) -> Stage:
    """15 dialogues in 3 parts."""
    stage = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit(), part_rows=PART_ROWS))
    writer = store.writer(stage)
    for part in range(PARTS):
        rows = [Dialogue(f"d{part}{k}", f"g{part}", (Turn("user", f"{text} ({part})"),)) for k, text in enumerate(SAID)]
        writer.write_records(part, rows, Dialogue)
    writer.commit()
    return stage


def teaching(store: Store, **fields: Any) -> Stage:
    turns = ("{dialogue}\n\nAnswer the speaker.",)
    teacher = Teacher(provider="scripted", model="rule-teacher-1", turns=turns, **fields)
    return Stage(RepliesSpec(responder=teacher), {"dialogues": dialogues(store)}, label="rule-teacher-1 direct")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(Faults(latency_s=0.01)) as running:
        yield running


def make(stage: Stage, store: Store, server: Scripted, workers: int = 0, **fields: Any) -> list[tuple[int, int]]:
    said: list[tuple[int, int]] = []
    providers = {"scripted": Provider("scripted", server.url, **fields)}
    ask(stage, store, providers, workers, 4, Reply, replies.askings, lambda _, done, of: said.append((done, of)))
    return said


def test_each_dialogue_is_answered_once_and_in_order(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    said = make(stage, store, server)
    artifact = store.get(stage)
    answered = list(artifact.read(Reply))
    assert [r.dialogue_id for r in answered] == [f"d{part}{k}" for part in range(PARTS) for k in range(len(SAID))]
    assert "dog" in answered[0].text
    assert {r.model_served for r in answered} == {"rule-teacher-1"}
    assert [p.rows for p in artifact.parts] == [5, 5, 5]
    assert artifact.counts["calls"] == 15
    assert (said[0], sorted(said)[-1]) == ((0, 15), (15, 15))
    assert server.counts()["total"] == 15


def test_another_stage_with_the_same_requests_pays_nothing(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    make(stage, store, server)
    again = Stage(stage.spec.model_copy(update={"split": "train"}), stage.inputs)
    make(again, store, server)
    assert store.get(again).counts == {"from_ledger": 15}
    assert server.counts()["total"] == 15


def test_finished_parts_are_kept_and_the_rest_is_made(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    kept = [Reply(f"d1{k}", "rule-teacher-1", f"kept {k}") for k in range(PART_ROWS)]
    store.writer(stage).write_records(1, kept, Reply)
    assert make(stage, store, server)[0] == (5, 15)
    assert [r.text for r in store.get(stage).read(Reply, 1)] == [r.text for r in kept]
    assert server.counts()["total"] == 10


def test_all_parts_there_means_nothing_is_asked(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    for part in range(PARTS):
        store.writer(stage).write_records(part, [], Reply)
    assert make(stage, store, server) == [(15, 15)]
    assert (store.done(stage), server.counts()["total"]) == (True, 0)


def test_one_bad_row_costs_one_row_and_is_counted(store: Store, server: Scripted) -> None:
    server.reset(Faults(fault="400", first=0, share=0.3))
    stage = teaching(store)
    make(stage, store, server)
    answered = list(store.get(stage).read(Reply))
    dropped = [r for r in answered if r.dropped]
    assert len(answered) == 15
    assert 0 < len(dropped) < 10
    assert store.get(stage).counts["dropped: refused"] == len(dropped)


def test_a_broken_run_goes_on_where_it_was(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    server.reset(Faults(fault="402", first=0, share=0.1))
    with pytest.raises(ProviderStopped, match="balance"):
        make(stage, store, server)
    paid = len(Ledger(store.files))
    assert not store.done(stage)
    server.reset(Faults())
    make(stage, store, server)
    assert server.counts()["total"] == 15 - paid
    assert store.get(stage).rows == 15


IMPATIENT = {"attempts": 2, "backoff_s": 0.01, "patience_s": 0.2}


def test_rows_without_a_reply_are_no_part_of_an_artifact(store: Store, server: Scripted) -> None:
    """60% of what is asked gets a 500, by its hash: with this `max_tokens` not the first row, but the question whether
    the provider is there at all."""
    stage = teaching(store, max_tokens=400)
    server.reset(Faults(fault="500", first=0, share=0.6))
    with pytest.raises(ProviderDown, match="no reply"):
        make(stage, store, server, **IMPATIENT)
    with Ledger(store.files) as ledger:
        kept = len(ledger)
    server.reset(Faults())
    make(stage, store, server)
    assert [r.dropped for r in store.get(stage).read(Reply)] == [None] * 15
    assert server.counts()["total"] == 15 - kept < 15


def test_a_row_that_is_to_blame_is_dropped_and_its_part_is_there(store: Store, server: Scripted) -> None:
    """20% of what is asked gets a 500, and that question does not."""
    stage = teaching(store)
    server.reset(Faults(fault="500", first=0, share=0.2))
    make(stage, store, server, **IMPATIENT)
    dropped = [str(r.dropped) for r in store.get(stage).read(Reply) if r.dropped]
    assert store.get(stage).counts["dropped: refused"] == len(dropped) > 0
    assert all("no answer after 4 attempts, while others were answered: HTTP 500" in why for why in dropped)


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("workers")
def test_workers_make_the_same_artifacts_as_this_process(tmp_path: Path, server: Scripted) -> None:
    here, there = (Store.open(str(tmp_path / name)) for name in ("here", "there"))
    stages = [teaching(here), teaching(there)]
    make(stages[0], here, server)
    said = make(stages[1], there, server, workers=2)
    assert sorted(said)[-1] == (15, 15)
    assert list(there.get(stages[1]).read(Reply)) == list(here.get(stages[0]).read(Reply))
    assert server.counts()["total"] == 30


def test_the_run_hears_of_rows_before_their_part_is_written(
    store: Store, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows of a part, one after another, each of 50 ms; they are told every 5 ms. Parts that were there before are
    not told."""
    monkeypatch.setattr(asking, "TELL_S", 0.005)
    server.reset(Faults(latency_s=0.05))
    stage, quota, heard = teaching(store), RunQuota(0, {}, Prices()), list[tuple[int, int]]()
    for part in (0, 1):
        store.writer(stage).write_records(part, [], Reply)
    end = quota.ask()
    tell = end.tell
    monkeypatch.setattr(end, "tell", lambda rows, *more: (heard.extend(rows.items()), tell(rows, *more)))
    jobs = [Job(stage, Reply, replies.askings, (PART_ROWS,) * PARTS)]
    ask_all(jobs, store, {"scripted": Provider("scripted", server.url)}, 0, 1, lambda *_: None, quota=end)
    assert {part for part, _ in heard} == {(stage.key, 2)}
    assert [rows for _, rows in heard] == sorted({rows for _, rows in heard})
    assert 1 < len(heard) <= PART_ROWS, "as they came, and not at the end alone"
    seen = quota.look()
    assert seen.rows == {stage.key: PART_ROWS}
    assert seen.asked["scripted", "rule-teacher-1"].sent == PART_ROWS


@pytest.mark.usefixtures("workers")
def test_a_worker_that_dies_is_started_again_and_the_run_sees_it(store: Store, server: Scripted) -> None:
    server.reset(Faults(latency_s=0.3))
    stage, quota = teaching(store), RunQuota(1, {}, Prices())
    jobs = [Job(stage, Reply, replies.askings, (PART_ROWS,) * PARTS)]
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set() and not quota.look().rows:  # it works
            time.sleep(0.05)
        for process in named(os.getpid(), "ray::MapWorker"):
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ask_all(jobs, store, {"scripted": Provider("scripted", server.url)}, 1, 1, lambda *_: None, quota=quota.ask())
    finally:
        ended.set()
        killer.join()
    assert quota.look().restarts == {"scripted rule-teacher-1": 1}
    assert store.get(stage).rows == 15


@pytest.mark.usefixtures("workers")
def test_several_stages_share_workers_and_equal_requests(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    twin = Stage(stage.spec.model_copy(update={"split": "train"}), stage.inputs)
    jobs = [Job(s, Reply, replies.askings, (PART_ROWS,) * PARTS) for s in (stage, twin)]
    ask_all(jobs, store, {"scripted": Provider("scripted", server.url)}, 2, 4, lambda *_: None)
    assert [store.get(s).rows for s in (stage, twin)] == [15, 15]
    assert server.counts()["total"] == 15


@pytest.mark.usefixtures("workers")
def test_what_stops_a_worker_is_told_as_it_was_raised(store: Store, server: Scripted) -> None:
    server.reset(Faults(fault="401", first=0))
    with pytest.raises(ProviderStopped, match=r"'scripted'.*401"):
        make(teaching(store), store, server, workers=1)


@pytest.mark.usefixtures("workers")
def test_the_cap_in_dollars_holds_over_workers_and_the_next_run_goes_on(store: Store, server: Scripted) -> None:
    price = Price(usd_per_million_in=0.0, usd_per_million_out=1000.0, as_of="always")
    prices, free_pace = Prices({"rule-teacher-1": price}, free=()), {("scripted", "*"): Limit(math.inf)}
    stage, providers = teaching(store), {"scripted": Provider("scripted", server.url)}
    jobs = [Job(stage, Reply, replies.askings, (PART_ROWS,) * PARTS)]
    quota = RunQuota(2, free_pace, prices, max_usd=0.35)
    with pytest.raises(BudgetSpent, match=r"max_usd = 0.35: \$0\.\d+ is spent in this run"):
        ask_all(jobs, store, providers, 2, 4, lambda *_: None, quota=quota.ask())
    with Ledger(store.files) as ledger:
        paid = sum(spent.tokens_out for spent in ledger.summary().values()) / 1000
        kept = len(ledger)
    assert quota.look().spending.paid_usd == pytest.approx(paid)
    assert 0.1 < paid <= 0.35
    assert server.counts()["total"] == kept < 15
    with pytest.raises(BudgetSpent):  # before any worker is started
        quota.ask()
    ask_all(jobs, store, providers, 2, 4, lambda *_: None, quota=RunQuota(2, free_pace, prices, max_usd=100).ask())
    assert (store.get(stage).rows, server.counts()["total"]) == (15, 15)
