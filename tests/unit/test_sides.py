"""The side `valid` is read by nothing: where a split has one, no teacher and no rating judge is asked about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.profile import Profile
from cluster.steps import asking_lane
from empathy import dialogues, examples, judges, replies
from empathy.experiment import Experiment
from empathy.lower import lower
from empathy.records import Dialogue, Reply, Score
from empathy.sources import parse
from empathy.specs import Pooled, Recorded, RepliesSpec, Teacher, VerdictsSpec
from empathy.specs.sides import is_on, named, rows_on
from empathy.stages import Stage, key_of, walk
from empathy.store import Store
from jobs.estimate.calls import bills
from jobs.estimate.held import Held
from jobs.estimate.view import View
from tests.experiments import tiny

N = 48
SCORING = {"provider": "embedded", "model": "rule-judge-1", "calls": 1, "good": 4.0}
THREE: dict[str, Any] = {"type": "random", "test_fraction": 0.25, "valid_fraction": 0.25}
READ = ("train", "test")
ARMS = [{"method": "improve_llm", "strategy": ["naive", "combined"]}, {"method": "direct"}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def rated(folder: Path, **changes: Any) -> Experiment:
    return tiny(folder, n=N, arms=ARMS, ratings=SCORING, teacher__unrated_is_good=False, **changes)


def stages_of(x: Experiment) -> list[Stage]:
    return list(walk([lower(x).report]))


def asked_sides(x: Experiment) -> Counter[Any]:
    """By the sides of every stage that a teacher, a pool of teachers or a rating judge makes."""
    return Counter(
        stage.spec.split
        for stage in stages_of(x)
        if (isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher | Pooled))
        or (isinstance(stage.spec, VerdictsSpec) and stage.spec.split != "test")
    )


def official(folder: Path, sides: list[str], **fields: Any) -> dict[str, Any]:
    """The split and the source of a file with these sides in turn; `fields` are of every row."""
    path = folder / "official.jsonl"
    rows = [
        {"id": f"o{k}", "turns": [{"role": "user", "content": f"row {k}"}], "human_reply": f"I see, {k}."}
        | ({"split": sides[k % len(sides)]} | fields)
        for k in range(N)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {"data__split": {"type": "official"}, "data__source": {"type": "jsonl", "path": str(path)}}


def test_sides_are_one_several_or_all() -> None:
    assert [named(sides) for sides in (None, "test", READ)] == [(), ("test",), READ]
    assert [is_on(sides, "valid") for sides in (None, "valid", "test", READ)] == [True, True, False, False]
    counts = {"train": 5, "valid": 3, "test": 2}
    assert [rows_on(sides, 10, counts) for sides in (None, "valid", READ, "none")] == [10, 3, 7, 0]  # type: ignore[arg-type]


def test_only_a_split_with_a_valid_side_names_the_sides(tmp_path: Path) -> None:
    """Six stages: two of the teacher for each of the union's and naive's strategies, its answers, the pool; the ratings
    of the human and of the direct answers."""
    whole, parted = asked_sides(rated(tmp_path)), asked_sides(rated(tmp_path, data__split=THREE))
    assert set(whole) == {None}
    assert set(parted) == {READ}
    assert whole.total() == parted.total() > 6
    assert set(asked_sides(rated(tmp_path, **official(tmp_path, ["train", "test", "valid"])))) == {READ}
    said = official(tmp_path, ["train", "test"], situation="valid", emotion="valid")
    assert set(asked_sides(rated(tmp_path, **said))) == {None}, "the word alone is no side"


def test_a_source_is_asked_row_by_row_unless_it_knows_better(tmp_path: Path) -> None:
    from empathy.sources.common import SourceConfig

    for sides, has in ((["train", "valid"], True), (["train", "test"], False)):
        path = official(tmp_path, sides)["data__source"]["path"]
        source = parse({"type": "jsonl", "path": path})
        assert source.has_valid() == SourceConfig.has_valid(source) == has


def test_keys_without_a_valid_side_are_what_they_were(tmp_path: Path) -> None:
    """The identity of a teacher's stage holds `split: null`, as ever; a set of sides comes back from JSON as it was."""
    for changes, split in (({}, None), ({"data__split": THREE}, list(READ))):
        stages = [s for s in stages_of(rated(tmp_path, **changes)) if s.label == "rule-teacher-1 direct"]
        (stage,) = stages
        assert stage.identity["spec"]["split"] == split
        again = RepliesSpec.model_validate(json.loads(json.dumps(stage.identity["spec"])))
        assert again == stage.spec
        assert key_of(json.loads(json.dumps(stage.identity))) == stage.key


def test_the_plan_counts_the_sides_that_are_read(tmp_path: Path, store: Store) -> None:
    x = rated(tmp_path, data__split=THREE)
    stages = stages_of(x)
    view = View(stages, set(), store)
    corpus = view.corpus(stages[0])
    sides = {side: corpus.count(side) or 0 for side in ("train", "valid", "test")}
    assert min(sides.values()) > 5
    direct = next(s for s in stages if s.label == "rule-teacher-1 direct")
    (bill,) = bills([direct], view, Held(None), Profile())
    assert bill.low.requests == N - sides["valid"] == sides["train"] + sides["test"]
    rating = next(s for s in stages if s.kind == "verdicts" and " rates human" in s.label)
    (bill,) = bills([rating], view, Held(None), Profile())
    assert bill.low.requests == N - sides["valid"]


def test_nobody_is_asked_about_the_valid_side_and_the_sets_are_made_all_the_same(tmp_path: Path, store: Store) -> None:
    """Stages made by hand of what they ask: a reply to each that is asked; the teacher's are Good, people's every other
    one."""
    x = tiny(tmp_path, n=N, arms=[{"method": "direct"}], ratings=SCORING, teacher__unrated_is_good=False,
             data__split=THREE)  # fmt: skip
    stages = stages_of(x)
    about = next(s for s in stages if s.kind == "dialogues" and s.spec == lower(x).report.inputs["dialogues"].spec)
    dialogues.make(about, store, store.writer(about))
    side = {d.id: d.split for d in store.get(about).read(Dialogue)}
    assert set(side.values()) == {"train", "valid", "test"}
    human = next(s for s in stages if isinstance(s.spec, RepliesSpec) and isinstance(s.spec.responder, Recorded))
    replies.recorded(human, store, store.writer(human))
    direct = next(s for s in stages if s.label == "rule-teacher-1 direct")
    asked = [name.partition("/")[0] for part in parts(store, about) for name, _ in replies.askings(direct, store, part)]
    assert Counter(side[name] for name in asked) == Counter(s for s in side.values() if s != "valid")
    assert sum(asking_lane.job(direct, store).dialogues) == len(asked)
    writer = store.writer(direct)
    for part in parts(store, about):
        names = [name.partition("/")[0] for name, _ in replies.askings(direct, store, part)]
        writer.write_records(part, [Reply(name, "m", f"I hear you, {name}.") for name in names], Reply)
    writer.commit()
    for rating in (s for s in stages if " rates " in s.label):
        writer, n = store.writer(rating), 0
        for part in parts(store, about):
            rated = [name for name, _ in judges.askings(rating, store, part)]
            assert {side[name.partition("/")[0]] for name in rated} <= set(READ)
            n += len(rated)
            writer.write_records(
                part,
                [score(name, good=k % 2 > 0 or rating.inputs["a"] is direct) for k, name in enumerate(rated)],
                Score,
            )
        assert n == len(asked)
        writer.commit()
    sets = [s for s in stages if s.kind == "examples" and s.inputs["dialogues"].key == about.key]
    assert len(sets) == 4, "SFT and DPO, to learn and to measure"
    for made in sets:
        examples.make(made, store, store.writer(made))
        assert store.get(made).rows > 0


def parts(store: Store, about: Stage) -> range:
    return range(len(store.get(about).parts))


def score(name: str, good: bool) -> Score:
    dialogue, _, sample = name.partition("/")
    return Score(name, dialogue, "g", "m", int(sample), "ok", overall=5.0 if good else 1.0)
