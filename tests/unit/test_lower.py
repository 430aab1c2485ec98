"""What an experiment becomes: counts by hand, sharing, and what enters a key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from empathy import documents
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.specs import CheckpointSpec, Dpo
from empathy.stages import Stage, walk
from tests.experiments import tiny, write_dialogues


def stages(lowered: Lowered) -> list[Stage]:
    return list(walk([lowered.report]))


def keys(lowered: Lowered) -> set[str]:
    return {s.key for s in stages(lowered)}


def test_stage_counts_by_hand(tmp_path: Path) -> None:
    found = Counter(s.kind for s in stages(lower(tiny(tmp_path))))
    assert found == {
        "dialogues": 2,  # the data, and what raises the base
        "replies": 2 + 1 + 2,  # human, teacher; base; sft, sft+dpo
        "examples": 1 + 2 + 2,  # raising; sft and dpo; held-out sft and dpo
        "checkpoint": 1 + 2,
        "logprobs": 1 + 2 * 3,  # the reference; held-out replies and pairs for base, sft, sft+dpo
        "verdicts": 2 * 3 + 2,  # two students against base, human, teacher; the base against human, teacher
        "report": 1,
    }


def test_dpo_after_sft_shares_the_sft_checkpoint_and_refers_to_it(tmp_path: Path) -> None:
    sft, dpo = lower(tiny(tmp_path)).cells
    assert dpo.checkpoint.inputs["policy"].key == sft.checkpoint.key
    assert dpo.checkpoint.inputs["reference"].inputs["checkpoint"].key == sft.checkpoint.key
    assert dpo.checkpoint.inputs["reference"].inputs["examples"].key == dpo.checkpoint.inputs["examples"].key


def test_dpo_alone_refers_to_the_base(tmp_path: Path) -> None:
    lowered = lower(tiny(tmp_path, grid__regime=["dpo"]))
    checkpoint = lowered.cells[0].checkpoint
    assert "policy" not in checkpoint.inputs
    assert checkpoint.inputs["reference"].inputs["checkpoint"].key == lowered.bases["tiny"].key


def test_two_betas_share_everything_but_the_dpo(tmp_path: Path) -> None:
    one = lower(tiny(tmp_path, train__dpo={"learning_rate": 1e-4, "beta": 0.1}))
    two = lower(tiny(tmp_path, train__dpo={"learning_rate": 1e-4, "beta": 0.5}))
    differing = [s for s in stages(two) if s.key not in keys(one)]
    assert Counter(s.kind for s in differing) == {
        "checkpoint": 1,
        "replies": 1,
        "logprobs": 2,
        "verdicts": 3,
        "report": 1,
    }
    assert all(isinstance(s.spec.objective, Dpo) for s in differing if isinstance(s.spec, CheckpointSpec))


def test_names_paths_and_defaults_are_no_identity(tmp_path: Path) -> None:
    here = lower(tiny(tmp_path / "here"))
    renamed = lower(tiny(tmp_path / "elsewhere", name="other", question="why?", judge__attempts=3, data__seed=0))
    assert keys(here) == keys(renamed)


def test_one_more_row_of_data_changes_all(tmp_path: Path) -> None:
    assert not keys(lower(tiny(tmp_path / "a", n=24))) & {
        s.key for s in stages(lower(tiny(tmp_path / "b", n=25))) if s.kind == "report"
    }


def test_a_reworded_prompt_remakes_its_own_branch_only(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    arms = [{"method": "improve_human", "strategy": ["naive", "all_three"]}]
    before = lower(tiny(tmp_path, arms=arms))
    (folder / "naive.toml").write_text(
        'name = "naive"\n[[wordings]]\nturns = ["Make it kinder.\\n{dialogue}\\nReply: {reply}"]\n'
    )
    teacher = {"provider": "embedded", "model": "rule-teacher-1", "prompts": str(folder)}
    after = lower(tiny(tmp_path, arms=arms, teacher=teacher))
    remade = [s for s in stages(after) if s.key not in keys(before)]
    assert remade
    assert not [s.label for s in remade if "all_three" in s.label]
    untouched = {c.lesson.strategy: c.replies.key for c in before.cells}
    for cell in after.cells:
        assert (cell.replies.key == untouched[cell.lesson.strategy]) == (
            cell.lesson.strategy == "all_three"
        ) or cell.regime == "sft"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": [{"method": "improve_human", "strategy": ["naiv"]}]}, r"naiv.*naive"),
        ({"arms": [{"method": "improve_human"}]}, r"strategy"),
        ({"arms": [{"method": "direct", "teacher": "gpt-5"}]}, r"arms\.teacher = 'gpt-5'.*rule-teacher-1"),
        ({"teacher": None}, r"\[teacher\]"),
        ({"grid": {"student": ["big"]}}, r"grid\.student = 'big'.*tiny"),
        ({"data__screens": ["emty"]}, r"emty.*empty"),
        ({"data__split": "papr"}, r"papr"),
        ({"students": {"x": {"init": "random"}}}, r"raise"),
        ({"students": {"x": {}}}, r"either model"),
        ({"students__tiny__size": {"hidden": 64, "heads": 4}}, r"hidden = 64 over size\.heads = 4.*32, 64"),
        ({"train__sft": {"learning_rat": 1}}, r"learning_rat.*learning_rate"),
    ],
)
def test_bad_files_are_refused_at_the_door(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(tmp_path, **change)


def test_missing_data_file_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        lower(tiny(tmp_path, data__source={"type": "jsonl", "path": str(tmp_path / "nowhere.jsonl")}))


def test_served_names(tmp_path: Path) -> None:
    lowered = lower(tiny(tmp_path))
    assert set(lowered.checkpoints) == {"tiny", "tiny-sft-direct-rule-teacher-1", "tiny-sft-dpo-direct-rule-teacher-1"}


def test_shipped_experiments_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMPATHY_DATA", str(tmp_path))
    files = sorted((Path(__file__).parents[2] / "jobs" / "experiments").glob("*.toml"))
    assert {f.stem for f in files} >= {"demo", "welivita_direct"}
    for file in files:
        assert documents.load(Experiment, file).name == file.stem


def test_write_dialogues_is_what_the_tests_think(tmp_path: Path) -> None:
    lines = write_dialogues(tmp_path / "d.jsonl", 6).read_text().splitlines()
    assert [line.count('"human": 3') for line in lines] == [0, 0, 1, 0, 0, 1]


def test_only_keeps_matching_cells_and_their_keys(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["naive", "all_three"]}]
    whole = lower(tiny(tmp_path, arms=arms))
    keys_of = {c.name: c.checkpoint.key for c in whole.cells}
    for only, expected in {
        ("strategy=naive",): 2,
        ("*regime=sft *",): 2,
        ("strategy=naive", "*regime=sft *"): 3,
        (whole.cells[0].name,): 1,
    }.items():
        cells = lower(tiny(tmp_path, arms=arms), only=only).cells
        assert len(cells) == expected
        assert {c.name: c.checkpoint.key for c in cells}.items() <= keys_of.items()
    one = lower(tiny(tmp_path, arms=arms), only=["strategy=naive"])
    assert not [s.label for s in stages(one) if "all_three" in s.label]
    assert keys(one) - keys(whole) == {one.report.key}


def test_only_that_matches_nothing_names_the_cells(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"only = 'strategy=naiv\*': matches no cell; there are\n  .*\n.*regime=sft\+dpo method=direct"
    ):
        lower(tiny(tmp_path), only=["method=direct", "strategy=naiv*"])


def test_an_arm_named_twice_is_one_arm(tmp_path: Path) -> None:
    twice = lower(tiny(tmp_path, arms=[{"method": "direct"}, {"method": ["direct"]}]))
    assert twice.report.key == lower(tiny(tmp_path)).report.key
