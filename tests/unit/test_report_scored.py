"""A rubric's scores of every reply: which stages the experiment asks for, and what the report says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.embedded import check_models
from empathy.lower import lower
from empathy.records import Dialogue, Score, Turn
from empathy.report import Headline
from empathy.report.book import Book
from empathy.report.cells import Cells
from empathy.report.content import served
from empathy.report.page import draw_page
from empathy.report.scored import estimates
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    HubBase,
    RandomSplit,
    Recorded,
    RepliesSpec,
    ReportSpec,
    Rubric,
    VerdictsSpec,
)
from empathy.stages import Stage, walk
from empathy.store import Store
from tests.experiments import tiny

RUBRIC = {"provider": "embedded", "model": "rule-judge-1", "calls": 2}


def test_everybodys_replies_are_scored_only_where_the_file_asks(tmp_path: Path) -> None:
    plain, asked = lower(tiny(tmp_path)).report, lower(tiny(tmp_path, rubric=RUBRIC)).report
    scored = asked.inputs.keys() - plain.inputs.keys()
    assert scored == {"human:scores", "teacher:0:scores", "base0:scores", "a000:scores", "a001:scores"}
    assert all(asked.inputs[name].key == stage.key for name, stage in plain.inputs.items()), "nothing else is remade"
    stage = asked.inputs["a001:scores"]
    assert isinstance(stage.spec, VerdictsSpec)
    assert isinstance(stage.spec.judge, Rubric)
    assert (stage.spec.split, stage.spec.judge.calls, stage.spec.cap_words) == ("test", 2, 97)
    assert stage.inputs["a"].key == asked.inputs["a001:replies"].key
    wrong = lower(tiny(tmp_path, rubric=RUBRIC | {"model": "gpt-9"})).report
    with pytest.raises(ValueError, match=r"rubric\.model = 'gpt-9'"):
        check_models(walk([wrong]))


@pytest.fixture
def report(tmp_path: Path) -> tuple[Stage, Store]:
    """Four dialogues in two clusters. The base scores 2, 2, 3, 3; the arm 3, 4, 5 and once unreadable."""
    store = Store.open(str(tmp_path / "store"))
    rows = [Dialogue(f"d{i}", f"g{i // 2}", (Turn("user", f"{i}"),), "test") for i in range(4)]
    about = Stage(DialoguesSpec(source="sample", digest="0" * 64, split=RandomSplit()))
    base = Stage(CheckpointSpec(base=HubBase(model="tiny")))
    tuned = Stage(CheckpointSpec(base=HubBase(model="tuned")), {"base": base})
    inputs = {"dialogues": about, "base0:checkpoint": base, "a000:checkpoint": tuned}
    rubric = Rubric(provider="embedded", model="judge", template="t", calls=2)
    for slot, overall in (("base0", (2.0, 2.0, 3.0, 3.0)), ("a000", (3.0, 4.0, 5.0, None))):
        spec, replies = VerdictsSpec(judge=rubric), Stage(RepliesSpec(responder=Recorded(responder=slot)))
        stage = Stage(spec, {"dialogues": about, "a": replies})
        writer = store.writer(stage)
        writer.write_records(0, [_score(d, x) for d, x in zip(rows, overall, strict=True)], Score)
        writer.commit()
        inputs[f"{slot}:scores"] = stage
    names = {"base0": "tiny (base)", "a000": "student=tiny regime=sft method=direct seed=0"}
    return Stage(ReportSpec(), inputs, locator=names), store


def _score(d: Dialogue, overall: float | None) -> Score:
    status = "unreadable" if overall is None else "ok"
    levels = (overall, overall, overall, overall)
    return Score(d.id, d.id, d.group, "judge", 0, status, *levels, model_served="judge-2", tokens_in=100, attempts=2)


def test_means_differences_and_what_could_not_be_read(report: tuple[Stage, Store]) -> None:
    stage, store = report
    found = {(e.arm, e.measure): e for e in estimates(Cells(stage), store)}
    base, arm = found["base0", "rubric_overall"], found["a000", "rubric_overall"]
    assert (base.value, base.n, base.clusters) == (2.5, 4, 2)
    # cluster sums of the residuals are -1 and +1: SE = sqrt(2 / 1 * 2) / 4 = .5, t with one degree 12.706
    assert base.high == pytest.approx(2.5 + 0.5 * 12.7062, abs=1e-3)
    assert (arm.value, arm.n) == (4.0, 3), "an unreadable score is no number"
    assert found["a000", "rubric_missing_share"].value == 0.25
    less = found["a000", "rubric_less_base"]
    assert (less.opponent, less.n) == ("base0", 3)
    assert less.value == pytest.approx((1 + 2 + 2) / 3)
    assert ("base0", "rubric_less_base") not in found


def test_the_model_that_scored_is_told_beside_the_one_that_was_asked(report: tuple[Stage, Store]) -> None:
    stage, store = report
    [row] = served([], Cells(stage), store)
    assert (row["asked"], row["of"], row["served"], row["verdicts"]) == ("judge", "rubric", ["judge-2"], 8)
    assert (row["calls"], row["uncalled"], row["tokens_in"], row["tokens_out"]) == (16, 0, 800, None)


def test_the_page_has_a_row_for_each(report: tuple[Stage, Store], tmp_path: Path) -> None:
    stage, store = report
    content = {
        "split": {"sizes": {}, "side": "test", "source": "s", "how": {"type": "x"}, "groups": 0, "cap_words": 97}
    }
    content |= {n: [] for n in ("stand_ins", "stages", "served", "judged", "samples", "training_sets", "sources")}
    found = list(estimates(Cells(stage), store))
    page = draw_page(stage, found, content, tmp_path, Headline("r", "?"), store.url).read_text()
    section = page[page.index('<h2 id="rubric">') : page.index('<h2 id="likelihood">')]
    rows = [re.sub("<[^>]+>", " ", row).split() for row in re.findall(r"<tr><td.*?</tr>", section, re.DOTALL)]
    assert [row[:2] for row in rows] == [["tiny", "(base)"], ["tiny", "sft"]]
    assert "+1.67" in rows[1]
    assert rows[1][-4:-1] == ["25.0", "too", "many"]
    assert Book(found, stage.locator).base_of("a000") == "base0"
