"""A source that is too large to be read for a plan: what can be counted is, and the rest is said to be unknown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.profile import Profile
from empathy.experiment import Experiment
from empathy.lower import lower
from empathy.sources import parse
from empathy.sources.reader import Reader
from empathy.specs import DialoguesSpec
from empathy.stages import walk
from empathy.store import Store
from jobs import plan
from jobs.estimate import corpus
from jobs.estimate.calls import bills
from jobs.estimate.held import Held
from jobs.estimate.view import View
from tests.experiments import tiny

N = 24


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(corpus, "MOST_READ", N - 1)
    return Store.open(str(tmp_path / "store"))


def read(x: Experiment) -> Counter[str]:
    """Dialogues by side, as the stage itself would read them."""
    stage = lower(x).report.inputs["dialogues"]
    assert isinstance(stage.spec, DialoguesSpec)
    source = parse({"type": stage.spec.source, **stage.spec.options, **stage.locator})
    return Counter(d.split for d in Reader(stage.spec, source, None).sampled())


def asked(x: Experiment, store: Store) -> dict[str, tuple[float, int]]:
    """By model: requests that are known of, and stages that are not."""
    stages = list(walk([lower(x).report]))
    found = bills(stages, View(stages, set(), store), Held(None), Profile())
    return {bill.model: (bill.low.requests, bill.unknown) for bill in found}


def said(x: Experiment, store: Store, max_usd: float | None = None) -> str:
    lowered = lower(x)
    return plan.text(x, lowered, [lowered.report], Profile(store=store.url), max_usd)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__limit": 10},
        {"data__limit": 1_000},
        {"data__split": {"type": "group", "test_fraction": 0.3, "valid_fraction": 0.3, "seed": 4}},
    ],
)
def test_what_is_too_large_to_be_looked_at_is_counted_as_it_will_be_read(
    changes: dict[str, Any], tmp_path: Path, store: Store
) -> None:
    """8 stages of verdicts in two orders; the raised base's 16 rows are few."""
    x = tiny(tmp_path, n=N, **changes)
    sides = read(x)
    assert 0 < sides["test"] < sides.total() <= min(N, changes.get("data__limit", N))
    read_by_some = sides["train"] + sides["test"]
    assert asked(x, store) == {"rule-teacher-1": (read_by_some, 0), "rule-judge-1": (8 * 2 * sides["test"], 0)}
    assert "unknown" not in said(x, store).replace("clusters unknown", "")


def test_rows_that_are_no_dialogues_are_not_counted(tmp_path: Path, store: Store) -> None:
    x = tiny(tmp_path, n=200)
    path = tmp_path / "dialogues.jsonl"
    path.write_text(path.read_text() + json.dumps({"id": "x", "turns": [{"role": "user", "content": " "}]}) + "\n")
    assert asked(x, store)["rule-teacher-1"] == (200, 0)


def test_what_is_too_large_to_be_counted_is_unknown_and_never_nought(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MOST_COUNTED", N - 1)
    x = tiny(tmp_path, n=N, teacher__provider="openai", teacher__model="gpt-4o")
    assert asked(x, store) == {"gpt-4o": (0, 1), "rule-judge-1": (0, 8)}
    lines = said(x, store).splitlines()
    (teacher,) = (line.split()[2:] for line in lines if line.startswith("openai gpt-4o"))
    (judge,) = (line.split()[2:] for line in lines if line.startswith("embedded rule-judge-1"))
    assert teacher == ["low", *["unknown"] * 4]
    assert judge == ["low", *["unknown"] * 3, "0.00"], "our own sends no bill, however much it is asked"
    assert "dollars in all: unknown" in lines
    (scoring,) = (line.split() for line in lines if line.startswith("scoring"))
    assert scoring == ["scoring", "7", "unknown", "unknown", "7", "stages", "unknown"], (
        "3 students on 2 sets, a reference"
    )
    assert "  a call that arms share is paid once: the dollars that this saves are unknown" in lines
    assert "dollars in all: unknown; the cap of 5.00 may stop the run before its end" in said(x, store, 5)


def test_a_limit_bounds_what_cannot_be_counted(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sides together are at most ten; how many of them are tests is not known."""
    monkeypatch.setattr(corpus, "MOST_COUNTED", N - 1)
    x = tiny(tmp_path, n=N, data__limit=10, teacher__provider="openai", teacher__model="gpt-4o")
    assert asked(x, store) == {"gpt-4o": (10, 0), "rule-judge-1": (0, 8)}
    assert "dollars in all: at least" not in said(x, store)
    x = tiny(tmp_path, n=N, data__limit=10, judge__provider="openai", judge__models=["gpt-4o"])
    text = said(x, store)
    assert "dollars in all: unknown" in text, "the judge is who is paid"
    x = tiny(tmp_path, n=N, data__limit=10, teacher__provider="openai", teacher__model="gpt-4o",
             judge={"provider": "openai", "models": ["gpt-4o"]})  # fmt: skip
    assert asked(x, store) == {"gpt-4o": (10, 8)}
    text = said(x, store)
    assert ">= 10" in text
    assert "dollars in all: at least 0.0" in text
