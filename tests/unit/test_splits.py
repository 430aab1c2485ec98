"""Splits, samples and exclusions: which dialogues are there, and on which side."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest

from empathy import dialogues
from empathy.records import Dialogue, Turn
from empathy.sources import parse
from empathy.specs import GroupSplit, OfficialSplit, PaperSplit, RandomSplit
from empathy.splits import draw, side
from empathy.stages import Stage
from empathy.store import Store

FIVE = ("human", "a", "b", "c", "d")


def rated(*ratings: int) -> Dialogue:
    return Dialogue("d", "g", (Turn("user", "hello"),), ratings=dict(zip(FIVE, ratings, strict=True)))


def rows(n: int) -> list[dict[str, object]]:
    """`n` dialogues in groups of five."""
    return [
        {"id": f"d{k}", "group": f"g{k // 5}", "turns": [{"role": "user", "content": f"the number {k} weighs on me"}]}
        for k in range(n)
    ]


def source(path: Path, content: list[dict[str, object]]) -> dict[str, object]:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return {"type": "jsonl", "path": str(path)}


def make(store: Store, stage: Stage) -> list[Dialogue]:
    dialogues.make(stage, store, store.writer(stage))
    return list(store.get(stage).read(Dialogue))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [((1, 2, 2, 2, 2), "test"), ((3, 1, 1, 1, 1), "test"), ((1, 1, 1, 3, 3), "train"), ((3, 3, 3, 3, 3), "train")],
)
def test_paper_split_counts_good_replies(ratings: tuple[int, ...], expected: str) -> None:
    assert side(PaperSplit(), rated(*ratings)) == expected


def test_random_sides_have_the_asked_shares() -> None:
    split = RandomSplit(test_fraction=0.2, valid_fraction=0.1, seed=7)
    sides = [side(split, Dialogue(f"d{k}", "g", ())) for k in range(20_000)]
    # four standard deviations of a binomial share of 20,000: 4 * sqrt(.2 * .8 / 20000) = 0.0113
    assert abs(sides.count("test") / 20_000 - 0.2) < 0.0114
    assert abs(sides.count("valid") / 20_000 - 0.1) < 0.0086


def test_a_side_hangs_on_seed_and_id_alone(tmp_path: Path, store: Store) -> None:
    content = rows(200)
    forward = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), RandomSplit(seed=1)))
    random.Random(0).shuffle(content)
    shuffled = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), RandomSplit(seed=1)))
    assert {d.id: d.split for d in forward} == {d.id: d.split for d in shuffled}
    reseeded = {d.id: side(RandomSplit(seed=2), d) for d in forward}
    assert reseeded != {d.id: d.split for d in forward}


def test_draws_are_the_same_in_every_process() -> None:
    # printf 'split\0000\0hit:1_conv:2' | b2sum -l 64
    assert draw("split", 0, "hit:1_conv:2") == 0x6829D773E1FACEEE


def test_turns_of_one_conversation_share_a_side() -> None:
    for k in range(50):
        sides = {
            side(RandomSplit(test_fraction=0.5), Dialogue(f"c{k}{turn}", "g", ())) for turn in ("", "#turn2", "#turn3")
        }
        assert len(sides) == 1


def test_group_split_keeps_groups_whole(tmp_path: Path, store: Store) -> None:
    split = GroupSplit(test_fraction=0.3, seed=3)
    found = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", rows(200))), split))
    sides = defaultdict(set)
    for d in found:
        sides[d.group].add(d.split)
    assert len(sides) == 40
    assert all(len(s) == 1 for s in sides.values())
    assert {s for group in sides.values() for s in group} == {"train", "test"}


def test_official_split_is_the_sources(tmp_path: Path, store: Store) -> None:
    content = [row | {"split": "test" if k < 3 else "train"} for k, row in enumerate(rows(10))]
    found = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), OfficialSplit()))
    assert [d.split for d in found] == ["test"] * 3 + ["train"] * 7


def test_a_split_that_the_source_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.split = 'paper': source 'jsonl' has none.*random, group, official"):
        dialogues.stage(parse(source(tmp_path / "a.jsonl", rows(1))), PaperSplit())


def test_only_keeps_one_side(tmp_path: Path, store: Store) -> None:
    data = parse(source(tmp_path / "a.jsonl", rows(100)))
    both = make(store, dialogues.stage(data, RandomSplit(test_fraction=0.5)))
    train = make(store, dialogues.stage(data, RandomSplit(test_fraction=0.5), only="train"))
    assert train == [d for d in both if d.split == "train"]
    assert 20 < len(train) < 80


def test_limit_is_a_sample_that_does_not_hang_on_the_order_of_rows(tmp_path: Path, store: Store) -> None:
    content = rows(300)
    split = RandomSplit()
    first = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), split, limit=40))
    assert len(first) == 40
    assert [d.id for d in first] != [f"d{k}" for k in range(40)]
    content.reverse()
    again = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), split, limit=40))
    assert {d.id for d in again} == {d.id for d in first}
    smaller = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), split, limit=10))
    assert {d.id for d in smaller} < {d.id for d in first}
    other = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), split, limit=40, seed=1))
    assert {d.id for d in other} != {d.id for d in first}
    everything = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), split, limit=1000))
    assert len(everything) == 300


def test_parts_have_the_asked_rows_and_carry_the_counts(tmp_path: Path, store: Store) -> None:
    stage = dialogues.stage(parse(source(tmp_path / "a.jsonl", rows(25))), RandomSplit(test_fraction=0.0), part_rows=10)
    make(store, stage)
    artifact = store.get(stage)
    assert [p.rows for p in artifact.parts] == [10, 10, 5]
    assert [p.counts for p in artifact.parts] == [{"train": 10}, {"train": 10}, {"train": 5}]
    exact = dialogues.stage(parse(source(tmp_path / "b.jsonl", rows(20))), RandomSplit(test_fraction=0.0), part_rows=10)
    make(store, exact)
    assert [p.rows for p in store.get(exact).parts] == [10, 10]


def test_without_drops_conversations_and_their_near_duplicates(tmp_path: Path, store: Store) -> None:
    def row(ident: str, content: str, **more: str) -> dict[str, object]:
        return {"id": ident, "turns": [{"role": "user", "content": content}]} | more

    held = parse(
        source(
            tmp_path / "held.jsonl", [row("c1", "I lost my old dog", situation="My dog ran off today"), row("c9", "hi")]
        )
    )
    without = dialogues.stage(held, RandomSplit())
    make(store, without)
    content = [
        row("c1", "something else entirely now"),
        row("c1#turn2", "a later turn of it"),
        row("x1", "i lost my OLD dog!!"),
        row("x2", "today was a bad day", situation="my dog ran off, today."),
        row("x3", "hi"),
        row("x4", "I lost my old cat"),
    ]
    stage = dialogues.stage(
        parse(source(tmp_path / "a.jsonl", content)), RandomSplit(test_fraction=0.0), without=without
    )
    assert [d.id for d in make(store, stage)] == ["x3", "x4"]  # "hi" is too short to be a duplicate
    assert store.get(stage).counts == {"train": 2, "excluded_id": 2, "excluded_text": 2}


def test_excluding_everything_is_refused(tmp_path: Path, store: Store) -> None:
    data = parse(source(tmp_path / "a.jsonl", rows(5)))
    without = dialogues.stage(data, RandomSplit())
    make(store, without)
    with pytest.raises(ValueError, match=r"no dialogue is left of 5 rows \(\{'excluded_id': 5\}\)"):
        make(store, dialogues.stage(data, GroupSplit(), without=without))


def test_a_training_dialogue_in_the_words_of_a_test_dialogue_is_dropped(tmp_path: Path, store: Store) -> None:
    content = rows(4)
    for row, side_, text in zip(
        content, ("train", "train", "test", "test"), ("I lost my dog!", "hi", "i lost my dog", "hi"), strict=True
    ):
        row |= {"split": side_, "turns": [{"role": "user", "content": text}]}
    stage = dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), OfficialSplit())
    assert [d.id for d in make(store, stage)] == ["d1", "d2", "d3"]
    assert store.get(stage).counts == {"train": 1, "test": 2, "twin_of_test": 1}


def test_a_conversation_on_both_sides_is_refused_before_anything_is_spent(tmp_path: Path, store: Store) -> None:
    content = rows(3)
    content[1] |= {"id": "d0#turn2", "split": "test"}
    stage = dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), OfficialSplit())
    with pytest.raises(
        ValueError, match=r"test dialogues inside training: 1 .*, for example d0; keep a conversation's"
    ):
        make(store, stage)
    assert not store.done(stage)
    found = make(store, dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), RandomSplit(test_fraction=0.5)))
    assert len({d.split for d in found if d.id.startswith("d0")}) == 1


def test_what_is_dropped_after_the_last_dialogue_is_counted(tmp_path: Path, store: Store) -> None:
    content = [*rows(200), {"id": "d200", "turns": [{"role": "assistant", "content": "hello"}]}]
    stage = dialogues.stage(parse(source(tmp_path / "a.jsonl", content)), RandomSplit(test_fraction=0.0), part_rows=100)
    make(store, stage)
    assert [(p.rows, dict(p.counts)) for p in store.get(stage).parts] == [
        (100, {"train": 100}),
        (100, {"train": 100, "role_order": 1}),
    ]
