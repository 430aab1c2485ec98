"""Teacher replies through workers: parts, order, counts, resuming, and what one bad row costs."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from cluster.steps.asking import ask
from empathy import replies
from empathy.records import Dialogue, Reply, Turn
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from empathy.store import Store
from serving.providers import Provider
from serving.scripted import Faults, Scripted

PARTS, PART_ROWS = 3, 5
SAID = ["My dog died last week.", "I lost my job today.", "I won the race!", "My sister ignores me.", "I failed my exam."]


def counts_of(server: Scripted) -> dict:
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/counts") as response:
        return orjson.loads(response.read())


def dialogues(store: Store) -> Stage:
    """15 dialogues in 3 parts."""
    stage = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit(), part_rows=PART_ROWS))
    writer = store.writer(stage)
    for part in range(PARTS):
        rows = [Dialogue(f"d{part}{k}", f"g{part}", (Turn("user", f"{text} ({part})"),)) for k, text in enumerate(SAID)]
        writer.write_records(part, rows, Dialogue)
    writer.commit()
    return stage


def teaching(store: Store, **fields: object) -> Stage:
    teacher = Teacher(provider="scripted", model="rule-teacher", turns=("{dialogue}\n\nAnswer the speaker.",), **fields)
    return Stage(RepliesSpec(responder=teacher), {"dialogues": dialogues(store)}, label="rule-teacher direct")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(Faults(latency_s=0.01)) as running:
        yield running


def make(stage: Stage, store: Store, server: Scripted, workers: int = 0, **provider: object) -> list[tuple[int, int]]:
    said: list[tuple[int, int]] = []
    providers = {"scripted": Provider("scripted", server.url, **provider)}
    ask(stage, store, providers, workers, 4, Reply, replies.askings, lambda _, done, of: said.append((done, of)))
    return said


def test_each_dialogue_is_answered_once_and_in_order(store: Store, server: Scripted) -> None:
    stage = teaching(store)
    said = make(stage, store, server)
    artifact = store.get(stage)
    answered = list(artifact.read(Reply))
    assert [r.dialogue_id for r in answered] == [f"d{part}{k}" for part in range(PARTS) for k in range(len(SAID))]
    assert "dog" in answered[0].text
    assert {r.model_served for r in answered} == {"rule-teacher"}
    assert [p.rows for p in artifact.parts] == [5, 5, 5]
    assert artifact.counts["calls"] == 15
    assert (said[0], sorted(said)[-1]) == ((0, 15), (15, 15))
    assert counts_of(server)["total"] == 15


def test_another_stage_with_the_same_requests_pays_nothing(store: Store, server: Scripted) -> None:
    make(teaching(store), store, server)
    again = Stage(teaching(store).spec.model_copy(update={"split": "train"}), {"dialogues": teaching(store).inputs["dialogues"]})
    make(again, store, server)
    assert store.get(again).counts == {"from_ledger": 15}
    assert counts_of(server)["total"] == 15
