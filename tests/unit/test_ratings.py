"""A judge rates in people's place: from dialogues to training sets, with the embedded rules as teacher and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.steps import here
from empathy.artifact import Artifact
from empathy.files import open_files
from empathy.lower import Lowered, lower
from empathy.records import Demonstration, Dialogue, Preference, Reply, Score
from empathy.specs import ExamplesSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from tests.experiments import tiny
from tests.sets import made

GOOD = 3.0
RATED: dict[str, Any] = {
    "ratings": {"provider": "embedded", "model": "rule-judge-1", "good": GOOD},
    "teacher": {"provider": "embedded", "model": "rule-teacher-1"},
    "data__source": {"type": "sample"},
    "data__limit": 96,
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lowered, Store]:
    folder = tmp_path_factory.mktemp("rated")
    arms = [{"method": "direct"}, {"method": "improve_human", "strategy": "naive"}]
    lowered = lower(tiny(folder, arms=arms, **RATED))
    store = Store(open_files(str(folder / "store")))
    made(lowered, store)
    return lowered, store


def marks(stage: Stage, store: Store) -> dict[str, float | None]:
    return {s.dialogue_id: s.overall for s in store.get(stage).read(Score)}


def training(lowered: Lowered, store: Store, method: str, objective: str) -> tuple[Stage, Artifact]:
    regime = "sft" if objective == "sft" else "sft+dpo"
    cell = next(c for c in lowered.cells if c.lesson.method.type == method and c.regime == regime)
    stage = cell.checkpoint.inputs["examples"]
    return stage, store.get(stage)


def test_sets_are_selected_by_the_judges_scores(chain: tuple[Lowered, Store]) -> None:
    lowered, store = chain
    sides = {d.id: d.split for d in store.get(lowered.report.inputs["dialogues"]).read(Dialogue)}
    ratings = {d.id: d.ratings["human"] for d in store.get(lowered.report.inputs["dialogues"]).read(Dialogue)}
    for method in ("direct", "improve_human"):
        for objective, cls in (("sft", Demonstration), ("dpo", Preference)):
            stage, artifact = training(lowered, store, method, objective)
            assert isinstance(stage.spec, ExamplesSpec)
            human = marks(stage.inputs["scores:human"], store)
            learned = marks(stage.inputs["scores:learned"], store) if method == "direct" else {}
            wanted = {
                d
                for d, side in sides.items()
                if side == "train"
                and ((human[d] or 0) >= GOOD) == (objective == "sft")
                and (method != "direct" or (learned[d] or 0) >= GOOD)
            }
            assert wanted
            assert len({ratings[d] for d in wanted}) > 1  # people's ratings are in the data, and nobody looks
            assert {x.dialogue_id for x in artifact.read(cls)} == wanted  # type: ignore[attr-defined]


def test_an_unrated_reply_teaches_nothing_and_is_counted(chain: tuple[Lowered, Store], tmp_path: Path) -> None:
    """The same chain with a judge that cannot be read for some replies."""
    lowered, before = chain
    store = Store(open_files(str(tmp_path)))
    stage, _ = training(lowered, before, "improve_human", "sft")
    lost: set[str] = set()
    for needed in walk([stage]):
        if needed.key == stage.key:
            continue
        source, writer = before.get(needed), store.writer(needed)
        for part in range(len(source.parts)):
            cls = {"dialogues": Dialogue, "replies": Reply, "verdicts": Score}[needed.kind]
            rows: list[Any] = list(source.read(cls, part))
            if needed.kind == "verdicts":
                rows = [_unread(s) if int(s.dialogue_id[-4:]) % 17 == 0 else s for s in rows]
                lost |= {s.dialogue_id for s in rows if s.overall is None}
            writer.write_records(part, rows, cls)
        writer.commit()
    here.make(stage, store)
    sides = {d.id: d.split for d in store.get(stage.inputs["dialogues"]).read(Dialogue)}
    lost = {d for d in lost if sides[d] == "train"}
    assert lost
    artifact = store.get(stage)
    assert artifact.meta["dropped"]["unrated"] == len(lost)
    assert not lost & {x.dialogue_id for x in artifact.read(Demonstration)}


def _unread(score: Score) -> Score:
    return Score(score.id, score.dialogue_id, score.group, score.judge, score.sample, "unreadable", raw=("?",))
