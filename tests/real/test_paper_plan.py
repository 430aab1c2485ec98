"""The plan of the paper's grid, counted by hand."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from empathy import experiment
from empathy.lower import lower
from empathy.specs import CheckpointSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import plan
from jobs.estimate.calls import bills
from jobs.estimate.held import Held
from jobs.estimate.view import View

PAPER = Path(__file__).parents[2] / "jobs" / "experiments" / "paper.toml"


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return list(walk([lower(experiment.load(PAPER)).report]))


def test_twenty_arms_by_three_regimes_a_student_and_seed() -> None:
    lowered = lower(experiment.load(PAPER))
    assert len({c.lesson.name for c in lowered.cells}) == 4 + 16
    assert Counter((c.student, c.seed) for c in lowered.cells) == {("llama", 0): 60, ("mistral", 0): 60}
    assert Counter(c.regime for c in lowered.cells) == {"sft": 40, "dpo": 40, "sft+dpo": 40}


def test_stages_by_kind(stages: list[Stage]) -> None:
    assert Counter(s.kind for s in stages) == {
        "dialogues": 1,
        # The human's and four models' recorded ones; asked: seven strategies on the human's replies, the teacher's own
        # answers and seven on those; the two unions; two bases and 120 students.
        "replies": 5 + 7 + 8 + 2 + 2 + 120,
        # An SFT and a DPO set to train on and to measure on, for 20 arms.
        "examples": 20 * 4,
        # A student: its base, and 20 arms of SFT, DPO and DPO on the SFT that is there.
        "checkpoint": 2 * (1 + 20 * 3),
        # References of DPO on the base and on the SFT; held-out replies and pairs of every student and of the bases.
        "logprobs": 2 * (20 + 20) + 2 * (120 + 2 * 20),
        # By two judges: students against base, human and teacher, the 14 arms with another strategy than naive against
        # it in three regimes; the bases against the human and 20 teachers.
        "verdicts": 2 * (120 * 3 + 2 * 14 * 3 + 2 * (1 + 20)),
        "report": 1,
    }


def test_requests_and_training_sets(stages: list[Stage], tmp_path: Path) -> None:
    view = View(stages, set(), Store.open(str(tmp_path / "store")))
    profile = plan.profiles.load(None, str(tmp_path / "store"))
    found = {b.model: b for b in bills(stages, view, Held(None), profile)}
    # naive, three dimensions, all three, lacking: one turn; sequential: three; on two kinds of replies; own answers.
    assert found["gpt-4o"].low.requests == 2_000 * (2 * (6 + 3) + 1)
    judges = [b for b in found.values() if b.model != "gpt-4o"]
    assert {b.low.requests for b in judges} == {250 * 2 * (120 * 3 + 2 * 14 * 3 + 2 * (1 + 20))}
    sets = {s.inputs["examples"] for s in stages if isinstance(s.spec, CheckpointSpec) and s.spec.objective}
    sizes = Counter((s.spec.objective, view.examples(s)) for s in sets)  # type: ignore[attr-defined]
    published = {("sft", 2 * n): 1 for n in (639, 617, 551, 587)} | {("dpo", n): 1 for n in (593, 563, 500, 575)}
    # Methods 2 and 3 have 950 and 800 dialogues; the union has three rewrites of each.
    rewriting = {("sft", 950 * 2): 14, ("dpo", 800): 14, ("sft", 950 * 4): 2, ("dpo", 800 * 3): 2}
    assert sizes == published | rewriting


def test_every_shipped_experiment_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import cli

    assert os.environ["EMPATHY_DATA"]
    for file in sorted(PAPER.parent.glob("*.toml")):
        assert cli.main(["plan", str(file), "--store", str(tmp_path / "store")]) == 0, file
        assert "to make" in capsys.readouterr().out
