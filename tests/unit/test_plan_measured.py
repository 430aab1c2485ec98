"""How long answers are, told by a store: means by hand, and what is expected is never more than the most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.profile import Profile
from empathy.experiment import Experiment
from empathy.lower import lower
from empathy.records import Score
from empathy.specs import RepliesSpec, Student, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs.estimate.calls import a_row, bills
from jobs.estimate.compute import work
from jobs.estimate.held import Held
from jobs.estimate.measured import answer_tokens
from jobs.estimate.view import View, asked_model, by_student
from serving import uses
from tests.experiments import tiny

N = 24
SCORING: dict[str, Any] = {"provider": "embedded", "model": "rule-judge-1"}
IMPROVE = [{"method": "improve_llm", "strategy": ["sequential", "naive"]}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def stages_of(x: Experiment) -> list[Stage]:
    return list(walk([lower(x).report]))


def one(stages: list[Stage], fits: Callable[[Stage], bool]) -> Stage:
    return next(stage for stage in stages if fits(stage))


def asks(what: str) -> Callable[[Stage], bool]:
    """By its label, or by what is asked for."""
    ways: dict[str, Callable[[VerdictsSpec], bool]] = {
        "pairs": lambda spec: hasattr(spec.judge, "mode"),
        "rubric": lambda spec: not hasattr(spec.judge, "mode") and spec.split == "test",
        "ratings": lambda spec: not hasattr(spec.judge, "mode") and spec.split is None,
    }
    return lambda stage: (
        (isinstance(stage.spec, VerdictsSpec) and ways[what](stage.spec))
        if what in ways
        else (stage.kind == "replies" and f" {what} on " in stage.label)
    )


def made(store: Store, stage: Stage, *parts: dict[str, int]) -> None:
    """The stage finished, with these counts of its parts."""
    writer = store.writer(stage)
    for k, counts in enumerate(parts):
        writer.write_records(k, [], Score, counts)
    writer.commit()


def view_of(stages: list[Stage], store: Store) -> View:
    return View(stages, store.finished(stages), store)


def test_a_turn_is_measured_and_not_a_chat(tmp_path: Path, store: Store) -> None:
    """12 + 24 answers of a chat of three turns came to 720 tokens: 20 a turn, whatever the rows say. Two of the 38
    calls came to nothing. What is expected of three turns is 60, and a reply, to be improved or learned, has 20."""
    stages = stages_of(tiny(tmp_path, n=N, arms=IMPROVE))
    chat, naive = (one(stages, asks(name)) for name in ("sequential", "naive"))
    made(store, chat, {"calls": 14, "retries": 2, "tokens_out": 200}, {"calls": 24, "tokens_out": 520})
    view = view_of(stages, store)
    low, high = a_row(chat, view)
    assert (low.requests, low.tokens_out) == (3, 60)
    assert (high.requests, high.tokens_out) == (3, 3 * 200)
    assert a_row(naive, view)[0].tokens_out == 20
    assert view.reply_tokens(chat, view.corpus(chat)) == 20


def test_each_way_of_judging_has_its_own_measure_over_calls_that_were_made(tmp_path: Path, store: Store) -> None:
    """One model compares (16 calls, 480 tokens), scores (4 calls, 200) and rates (10 calls, 600); verdicts that were
    decided without a call, or came from the ledger, are in no mean. A stage of such alone measures nothing."""
    stages = stages_of(tiny(tmp_path, n=N, rubric=SCORING, ratings=SCORING, teacher__unrated_is_good=False))
    counts = {
        "pairs": {"calls": 16, "tokens_out": 480, "from_ledger": 9, "shared": 9, "shared_tokens_out": 9_000},
        "rubric": {"calls": 4, "tokens_out": 200},
        "ratings": {"calls": 10, "tokens_out": 600},
    }
    assert a_row(one(stages, asks("pairs")), view_of(stages, store))[0].tokens_out == 120
    for what, counted in counts.items():
        made(store, one(stages, asks(what)), counted)
    view = view_of(stages, store)
    found = {what: {a_row(s, view)[0].tokens_out for s in stages if asks(what)(s)} for what in counts}
    assert found == {"pairs": {30}, "rubric": {50}, "ratings": {60}}


def test_stages_that_asked_nobody_or_whose_provider_counted_nothing_measure_nothing(
    tmp_path: Path, store: Store
) -> None:
    stages = stages_of(tiny(tmp_path, n=N, arms=IMPROVE))
    made(store, one(stages, asks("sequential")), {"from_ledger": 24, "shared": 24, "shared_tokens_out": 900})
    made(store, one(stages, asks("pairs")), {"calls": 24})
    assert answer_tokens(store, stages) == {}


def test_other_experiments_of_the_store_measure_too_and_what_is_damaged_does_not(tmp_path: Path, store: Store) -> None:
    mine = stages_of(tiny(tmp_path, n=N, arms=IMPROVE))
    (tmp_path / "others").mkdir()
    other = stages_of(tiny(tmp_path / "others", n=N + 1, arms=IMPROVE))
    chat, naive = (one(other, asks(name)) for name in ("sequential", "naive"))
    made(store, chat, {"calls": 10, "tokens_out": 250})
    made(store, naive, {"calls": 10, "tokens_out": 50})
    assert a_row(one(mine, asks("naive")), view_of(mine, store))[0].tokens_out == pytest.approx(28 * 4 / 3)
    uses.note(store.files, "other", other)
    assert a_row(one(mine, asks("naive")), view_of(mine, store))[0].tokens_out == 15
    store.files.write(f"replies/{naive.key}/artifact.json", b"{}")
    store.files.write("ledger/uses/third/0.json", b"[]")
    assert a_row(one(mine, asks("naive")), view_of(mine, store))[0].tokens_out == 25


def test_training_reads_no_more_after_a_chat_was_measured_at_its_limit(tmp_path: Path, store: Store) -> None:
    """The limit is under the 37 tokens that are assumed; three turns of it are one reply all the same."""
    stages = stages_of(tiny(tmp_path, n=N, arms=IMPROVE, teacher__max_tokens=30))
    before = work(stages, view_of(stages, store), Profile())
    made(store, one(stages, asks("sequential")), {"calls": 72, "tokens_out": 72 * 30})
    assert work(stages, view_of(stages, store), Profile()) == before


def test_what_a_student_answers_is_within_its_limit(tmp_path: Path, store: Store) -> None:
    stages = stages_of(tiny(tmp_path, n=N))
    answers = one(stages, by_student)
    assert isinstance(answers.spec, RepliesSpec)
    assert isinstance(answers.spec.responder, Student)
    view = view_of(stages, store)
    assert view.reply_tokens(answers, view.corpus(answers)) == answers.spec.responder.max_tokens == 16


@pytest.mark.parametrize("seed", range(12))
def test_low_is_never_over_high(seed: int, tmp_path: Path, store: Store) -> None:
    """Experiments and stores that are drawn: limits from tiny to large, all ways of judging, and measures that may be
    far over a limit, because another experiment's was higher."""
    draw = Random(seed)
    changes: dict[str, Any] = {
        "teacher__unrated_is_good": False,
        "teacher__max_tokens": draw.choice([16, 40, 200, 2_000]),
        "judge": {
            "provider": "embedded",
            "models": ["rule-judge-1"],
            "mode": draw.choice(["robust", "paper"]),
            "max_tokens": draw.choice([16, 700]),
            "cap_words": draw.choice([1, 10, 97]),
            "attempts": draw.choice([1, 3]),
        },
        "rubric": SCORING | {"max_tokens": draw.choice([16, 400]), "attempts": draw.choice([1, 3])},
        "ratings": SCORING | {"max_tokens": draw.choice([16, 400])},
    }
    strategies = draw.sample(["naive", "sequential", "combined", "all_three", "lacking"], 2)
    x = tiny(tmp_path, n=N, arms=[{"method": ["improve_human", "improve_llm"], "strategy": strategies}], **changes)
    stages = stages_of(x)
    paid = [stage for stage in stages if asked_model(stage)]
    for stage in draw.sample(paid, len(paid) // 2):
        calls = draw.randint(1, 50)
        made(store, stage, {"calls": calls, "tokens_out": calls * draw.choice([1, 30, 500, 5_000])})
    view = view_of(stages, store)
    found = bills(stages, view, Held(None), Profile())
    assert {bill.model for bill in found} == {"rule-teacher-1", "rule-judge-1"}
    for bill in found:
        assert 0 < bill.low.requests <= bill.high.requests
        assert 0 < bill.low.tokens_in <= bill.high.tokens_in
        assert 0 < bill.low.tokens_out <= bill.high.tokens_out
