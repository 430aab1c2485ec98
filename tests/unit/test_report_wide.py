"""A page about many arms: an overview first, long tables folded up, charts in rows that can be read, few megabytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from empathy.records import Estimate
from empathy.report import Headline
from empathy.report.figures import MOST_BARS, MOST_GROUPS, Bar, _rows, draw
from empathy.report.page import draw_page
from empathy.specs import DialoguesSpec, RandomSplit, ReportSpec
from empathy.stages import Stage

LESSONS, SEEDS = ("naive", "cognitive", "affective", "compassionate"), range(4)
MEASURES = ("win_rate", "missing_share", "win_rate_missing_lost", "win_rate_missing_won")
SPLIT = {"sizes": {"test": 9}, "side": "test", "source": "x", "how": {"type": "random"}, "groups": 1, "cap_words": 97}
EMPTY = ("stand_ins", "stages", "served", "judged", "samples", "training_sets", "sources")
CONTENT = {"split": SPLIT, **{name: [] for name in EMPTY}}


def arm(regime: str, strategy: str, seed: int) -> str:
    return f"student=llama regime={regime} method=improve_human strategy={strategy} seed={seed}"


NAMES = {"base0": "llama (base)"} | {
    f"a{i:03d}": name
    for i, name in enumerate(arm(r, s, k) for s in LESSONS for r in ("sft", "dpo", "sft+dpo") for k in SEEDS)
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 arms against their base."""
    slots = [slot for slot in NAMES if slot.startswith("a")]
    estimates = [
        Estimate(slot, "base0", measure, 0.01 * i, None, None, 9, 9, "judge", "robust mode", "k" * 32)
        for i, slot in enumerate(slots)
        for measure in MEASURES
    ]
    about = Stage(DialoguesSpec(source="sample", digest="0" * 64, split=RandomSplit()))
    stage, folder = Stage(ReportSpec(), {"dialogues": about}, locator=NAMES), tmp_path_factory.mktemp("wide")
    return draw_page(stage, estimates, CONTENT, folder, Headline("wide", "?"), str(folder)).read_text()


def test_an_overview_comes_before_a_table_that_is_folded_up(page: str) -> None:
    overview, folded = page.index('<th class="n">against base</th>'), page.index("<details><summary>48 rows")
    assert overview < folded
    rows = re.findall(r'<tr><td class="who">([^<]+)</td><td class="n">([^<]+)</td></tr>', page[overview:folded])
    assert len(rows) == 48
    assert rows[5] == ("dpo improve_human naive seed 1", "5.0")


def test_many_bars_are_broken_into_rows_between_groups() -> None:
    bars = [Bar("p", f"g{i}", s, 50.0, 40.0, 60.0) for i in range(25) for s in ("sft", "dpo", "sft+dpo")]
    rows = list(_rows([*bars, Bar("q", "g", "sft", 1.0, None, None)]))
    assert [title for title, _ in rows] == ["p (1 of 3)", "p (2 of 3)", "p (3 of 3)", "q"]
    assert [b for _, shown in rows[:3] for b in shown] == bars
    assert all(len(shown) <= MOST_BARS for _, shown in rows)
    assert all(len({b.group for b in shown}) * 3 == len(shown) for _, shown in rows[:3]), "no group is torn apart"
    single = [Bar("p", f"g{i}", "sft", 50.0, None, None) for i in range(25)]
    assert max(len(shown) for _, shown in _rows(single)) <= MOST_GROUPS, "names need room too"


def test_a_bar_costs_few_bytes(tmp_path: Path) -> None:
    bars = [Bar("p", f"g{i}", "sft", 100 / 3 + i, 30.0, 70.0) for i in range(60)]
    small, large = (draw("x", "X", "", some, "%", 100, 50).svg for some in (bars[:30], bars))
    assert (len(large) - len(small)) / 30 < 1120, "bytes a bar, its reach and its name; 1,447 as drawn"
