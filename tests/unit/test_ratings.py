"""A judge rates in people's place: from dialogues to training sets, with the embedded rules as teacher and judge."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from cluster.steps import here
from empathy.artifact import Artifact
from empathy.files import open_files
from empathy.lower import Lowered, lower
from empathy.records import Demonstration, Dialogue, Estimate, Preference, Reply, Score
from empathy.report import Headline, render
from empathy.report.cells import Cells
from empathy.report.page import draw_page
from empathy.report.ratings import ratings
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


SPLIT = {"sizes": {}, "side": "test", "source": "s", "how": {"type": "x"}, "groups": 0, "cap_words": 97}
LISTS = ("stand_ins", "stages", "served", "judged", "samples", "training_sets", "sources")
EMPTY: dict[str, Any] = {"split": SPLIT, **{name: [] for name in LISTS}}
"""What a page says besides estimates, of a report that says nothing."""


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


def test_the_report_tells_the_ratings_that_decided(chain: tuple[Lowered, Store], tmp_path: Path) -> None:
    lowered, store = chain
    found = ratings(Cells(lowered.report), store)
    assert [(r["of"] is None, r["by"], r["good"]) for r in found] == [
        (True, "rule-judge-1", GOOD),
        (False, "rule-judge-1", GOOD),
    ], "people's replies once for all sets and arms, the teacher's once"
    assert [len(r["slots"]) for r in found] == [len(lowered.cells), len(lowered.cells) // 2], "direct alone needs both"
    train = {d.id: d.group for d in store.get(lowered.report.inputs["dialogues"]).read(Dialogue) if d.split == "train"}
    for r in found:
        scores = {s.dialogue_id: s.overall for s in store.find("verdicts", r["key"]).read(Score)}
        here = {d: scores[d] for d in train}
        assert r["replies"] == len(train)
        assert r["at_least"] == sum(x >= GOOD for x in here.values()) > 0
        assert r["below"] == sum(x < GOOD for x in here.values()) > 0
        assert r["unrated"] == 0
        assert r["mean"] == pytest.approx(fmean(here.values()))
        assert dict(r["levels"])["3–4"] == sum(3 <= x < 4 for x in here.values())
        assert sum(n for _, n in r["levels"]) == len(train)
        by_group = defaultdict(list)
        for d, group in train.items():
            by_group[group].append(here[d] - r["mean"])
        assert r["clusters"] == len(by_group)
        c = len(by_group)
        se = (c / (c - 1) * sum(sum(x) ** 2 for x in by_group.values())) ** 0.5 / len(train)
        assert (r["high"] - r["low"]) / 2 == pytest.approx(_t(c - 1) * se, rel=1e-3)
    page = draw_page(lowered.report, [], EMPTY | {"ratings": found}, tmp_path, Headline("r", "?"), store.url)
    rows = re.findall(r"<tr><td>([^<]*)</td><td>rule-judge-1</td>", ratings_of(page.read_text()))
    assert rows == ["human replies", "rule-teacher-1 direct"]


def test_a_report_made_before_ratings_were_told_is_drawn_with_them(
    chain: tuple[Lowered, Store], tmp_path: Path
) -> None:
    lowered, store = chain
    writer = store.writer(lowered.report)
    writer.write_records(0, [], Estimate)
    writer.add_file("content.json", json.dumps(EMPTY).encode())
    writer.commit()
    page = render(lowered.report, store, tmp_path, Headline("r", "?")).read_text()
    assert ratings_of(page).count("<td>rule-judge-1</td>") == 2


def ratings_of(page: str) -> str:
    """The section of a report: the judge is named in others too."""
    return page.partition('<h2 id="ratings">')[2].partition("<h2")[0]


def _t(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def test_the_report_tells_peoples_ratings_too(tmp_path: Path) -> None:
    arms = [{"method": "direct"}, {"method": "improve_human", "strategy": "naive"}]
    lowered = lower(
        tiny(tmp_path / "tiny", n=30, arms=arms)
    )  # people rate 1, 2, 3 in turn; the teacher is not rated, so Good
    store = Store(open_files(str(tmp_path / "store")))
    made(lowered, store)
    human, learned = ratings(Cells(lowered.report), store)  # of SFT and DPO, with and without a method that forgives
    rows = [d for d in store.get(lowered.report.inputs["dialogues"]).read(Dialogue) if d.split == "train"]
    levels = [("Bad", 1), ("Okay", 2), ("Good", 3)]
    assert human["by"] == "people"
    assert human["levels"] == [(name, sum(d.ratings["human"] == k for d in rows)) for name, k in levels]
    assert human["at_least"] == dict(human["levels"])["Good"]
    assert (learned["replies"], learned["unrated"], learned["unrated_is_good"]) == (len(rows), len(rows), True)
    assert [len(human["slots"]), len(learned["slots"])] == [4, 2]
    assert (learned["mean"], learned["low"]) == (None, None), "unknown is no number"


def test_the_report_counts_a_score_that_could_not_be_read_as_unrated(tmp_path: Path) -> None:
    lowered = lower(tiny(tmp_path / "rated", arms=[{"method": "improve_human", "strategy": "naive"}], **RATED))
    store = Store(open_files(str(tmp_path / "rated store")))
    about = lowered.report.inputs["dialogues"]
    here.make(about, store)
    train = [d.id for d in store.get(about).read(Dialogue) if d.split == "train"]
    [scores] = {s.inputs["scores:human"] for s in walk([lowered.report]) if "scores:human" in s.inputs}
    writer = store.writer(scores)
    for part in range(len(store.get(about).parts)):
        rows = [
            replace(Score(d.id, d.id, d.group, "j", 0, "ok", 2.5), **_lost(d.id == train[0]))
            for d in store.get(about).read(Dialogue, part)
        ]
        writer.write_records(part, rows, Score)
    writer.commit()
    for stage in walk([lowered.report]):
        if stage.kind == "replies" and "checkpoint" not in stage.inputs and stage.inputs["dialogues"] is about:
            _empty(stage, store, about)
    [told] = ratings(Cells(lowered.report), store)
    assert (told["unrated"], told["below"], told["at_least"]) == (1, len(train) - 1, 0)
    assert (told["mean"], dict(told["levels"])["2–3"]) == (2.5, len(train) - 1)


def _lost(lost: bool) -> dict[str, Any]:
    return {"status": "unreadable", "overall": None} if lost else {}


def _empty(stage: Stage, store: Store, about: Stage) -> None:
    writer = store.writer(stage)
    for part in range(len(store.get(about).parts)):
        writer.write_records(part, [], Reply)
    writer.commit()
