"""Which arms a report can be made of while others lack something."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.schedule import Failure
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.stages import Stage, walk
from jobs.partial import Partial, partial
from jobs.run import failed_table
from tests.experiments import tiny

ARMS = [{"method": "improve_human", "strategy": ["naive", "cognitive", "affective"]}]


@pytest.fixture
def lowered(tmp_path: Path) -> Lowered:
    """Arms a000 naive, a001 cognitive, a002 affective; the last two are compared with the first."""
    return lower(_experiment(tmp_path))


def _experiment(folder: Path) -> Experiment:
    opponents = ["base", "human", "teacher", "naive"]
    return tiny(folder, arms=ARMS, grid__regime=["sft"], judge__opponents=opponents)


def without(folder: Path, lowered: Lowered, *broken: Stage) -> Partial | None:
    """All is done but the report, `broken` and what stands on these."""
    lost: set[str] = set()
    for stage in walk([lowered.report]):
        if stage in broken or stage is lowered.report or any(s.key in lost for s in stage.inputs.values()):
            lost.add(stage.key)
    return partial(_experiment(folder), lowered, (), lambda stage: stage.key not in lost)


def strategies(found: Lowered) -> list[str | None]:
    return [cell.lesson.strategy for cell in found.cells]


def test_an_arm_whose_set_failed_is_left_out_with_its_reason(tmp_path: Path, lowered: Lowered) -> None:
    broken = lowered.cells[1].checkpoint.inputs["examples"]
    found = without(tmp_path, lowered, broken)
    assert found is not None
    assert strategies(found.lowered) == ["naive", "affective"]
    name, arms = f"examples/{broken.key[:8]} {broken.label}", ["sft improve_human cognitive"]
    assert found.left_out({broken.key: "too many dropped"}) == [(f"{name}: too many dropped", arms)]
    assert found.left_out({}) == [(f"{name}: not made", arms)]
    theirs = {stage.key for stage in lowered.report.inputs.values()}
    assert {stage.key for stage in found.lowered.report.inputs.values()} < theirs, "nothing new is to be made"
    assert found.lowered.report.key != lowered.report.key


def test_an_arm_stays_when_the_naive_one_that_it_is_compared_with_goes(tmp_path: Path, lowered: Lowered) -> None:
    found = without(tmp_path, lowered, lowered.cells[0].checkpoint)
    assert found is not None
    assert strategies(found.lowered) == ["cognitive", "affective"]
    assert not [name for name in found.lowered.report.inputs if ":verdicts:a0" in name]


def test_an_arm_goes_when_its_comparison_with_an_arm_that_stays_failed(tmp_path: Path, lowered: Lowered) -> None:
    found = without(tmp_path, lowered, lowered.report.inputs["a002:verdicts:a000"])
    assert found is not None
    assert strategies(found.lowered) == ["naive", "cognitive"]


@pytest.mark.parametrize("slot", ["base0:replies", "human:replies", "base0:checkpoint"])
def test_what_all_arms_stand_on_leaves_none(slot: str, tmp_path: Path, lowered: Lowered) -> None:
    assert without(tmp_path, lowered, lowered.report.inputs[slot]) is None


def test_what_a_lesson_lacks_is_lacking_to_its_arms_alone(tmp_path: Path, lowered: Lowered) -> None:
    found = without(tmp_path, lowered, lowered.report.inputs["base0:verdicts:teacher:2"])
    assert found is not None
    assert strategies(found.lowered) == ["naive", "cognitive"]


def test_what_fails_for_good_is_told_and_not_offered_again(lowered: Lowered) -> None:
    bad = lowered.cells[0].checkpoint.inputs["examples"]
    for_good = Failure(bad, "max_dropped = 0.2: 9 of 10", 5, lasting=True)
    alone = failed_table([for_good], 6, "empathy run x.toml")
    assert "for good: max_dropped = 0.2: 9 of 10" in alone
    assert "fails the same way in every run: change the experiment" in alone
    assert "empathy run" not in alone
    both = failed_table([for_good, Failure(lowered.cells[1].checkpoint, "out of memory", 3)], 9, "empathy run x.toml")
    assert "Go on with:\n    empathy run x.toml" in both
