"""The settings on the page are those of the stages, told apart by what arms share and what differs."""

from __future__ import annotations

from pathlib import Path

from empathy.lower import lower
from empathy.report.cells import Cells
from empathy.report.settings import Settings, settings
from tests.experiments import tiny

IMPROVE = [{"method": "improve_llm", "strategy": ["naive", "cognitive"]}]


def of(tmp_path: Path, **changes: object) -> Settings:
    return settings(Cells(lower(tiny(tmp_path, **changes)).report))


def test_what_arms_share_stands_once_and_what_differs_by_arm(tmp_path: Path) -> None:
    found = of(tmp_path, arms=IMPROVE, train__lora={"rank": 4, "alpha": 12.5}, train__dpo__beta=0.25)
    assert found.shared["sft: tuning.rank"] == found.shared["dpo: tuning.rank"] == "4"
    assert found.shared["sft: tuning.alpha"] == "12.5"
    assert found.shared["dpo: beta"] == "0.25"
    assert found.shared["judge: cap_words"] == "97"
    assert found.columns == ["teacher: turns"], "the two strategies differ in what the teacher is told"
    naive, cognitive = (
        {own["teacher: turns"] for slot, own in found.own.items() if slot in some}
        for some in (("a000", "a001"), ("a002", "a003"))
    )
    assert len(naive) == len(cognitive) == 1
    text = found.texts[int(cognitive.pop().removeprefix("text ")) - 1]
    assert "{reply}" in text
    assert naive.isdisjoint({f"text {found.texts.index(text) + 1}"})


def test_the_reading_of_method_3_is_told(tmp_path: Path) -> None:
    for reading in ("initial", "human"):
        found = of(tmp_path / reading, arms=IMPROVE, train__rejected=reading)
        assert found.shared["set: method.rejected"] == reading


def test_a_base_that_was_raised_says_how_and_lora_says_where(tmp_path: Path) -> None:
    found = of(tmp_path, train__tuning="lora", train__lora={"rank": 4}, grid__regime=["sft", "sft+dpo"])
    raised = tiny(tmp_path).students["tiny"].raised
    assert raised is not None
    assert found.shared["raise: optimiser.learning_rate"] == f"{raised.optimiser.learning_rate:g}"
    assert found.shared["raise: tuning.type"] == "full"
    assert found.shared["sft: tuning.targets"] == found.shared["dpo: tuning.targets"] == "all linear layers"
    steps = list(dict.fromkeys(name.split(":")[0] for name in found.shared))
    assert steps[: steps.index("set")] == ["base", "raise", "sft", "training", "dpo"], "in their order"
    named = of(tmp_path / "named", train__tuning="lora", train__lora={"rank": 4, "targets": ["q_proj", "v_proj"]})
    assert named.shared["sft: tuning.targets"] == "q_proj, v_proj"


def test_seeds_are_told_apart(tmp_path: Path) -> None:
    found = of(tmp_path, grid__seed=[0, 7])
    assert {own["training: seed"] for own in found.own.values()} == {"0", "7"}
    assert "training: seed" not in found.shared


def test_a_union_is_told_as_what_it_pools(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["naive", "combined"], "both_replies": [True, False]}]
    found = of(tmp_path, arms=arms, grid__regime=["sft"])
    assert [own["teacher: turns"] for own in found.own.values()] == [*["text 2"] * 2, *["pooled: 3 strategies"] * 2]
    assert [own["set: method.both_replies"] for own in found.own.values()] == ["yes", "no"] * 2
    assert found.shared["teacher: model"] == "rule-teacher-1"
