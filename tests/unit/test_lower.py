"""What an experiment becomes: counts by hand, sharing, and what enters a key."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.specs import CheckpointSpec, Dpo, ExamplesSpec, ImproveLlm, Rubric, VerdictsSpec
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
        ({"arms": [{"method": "direct", "strategy": "naive"}]}, r"'naive': its prompt rewrites a reply; with direct"),
        ({"arms": [{"method": "improve_llm", "strategy": "direct"}]}, r"'direct': its prompt has no \{reply\}"),
        ({"arms": [{"method": "improve_llm", "strategy": "combined", "wording": [0, 2]}]}, r"wording = 2.*0 to 1"),
        ({"arms": [{"method": "direct", "wording": 1}]}, r"wording = \[1\]: it chooses a wording of a strategy"),
        ({"arms": [{"method": ["direct", "improve_llm"], "strategy": "naive"}]}, r"one that rewrites does not answer"),
        ({"arms": [{"method": "human", "strategy": "naive"}]}, r"'human' has neither teacher nor strategy"),
        ({"ratings": {"model": "m"}}, r"unrated_is_good = true beside \[ratings\]"),
        ({"ratings": {"model": "m", "good": 6}}, r"ratings\.good"),
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


def test_two_students_never_go_by_one_name(tmp_path: Path) -> None:
    x = tiny(tmp_path)
    size = x.students["tiny"]
    for name, other in (
        ("tiny-sft-direct-rule-teacher-1", "students.tiny-sft-direct-rule-teacher-1"),
        ("tiny-sft", "the trained student 'student=tiny regime=sft.dpo method=direct .*'"),
    ):
        regimes = ("sft", "sft+dpo") if other.startswith("students") else ("sft+dpo", "dpo")
        both = x.model_copy(
            update={
                "students": {"tiny": size, name: size},
                "grid": x.grid.model_copy(update={"regime": regimes, "student": ("tiny", name)}),
            }
        )
        with pytest.raises(ValueError, match=f"{other} and the trained student 'student=.*' would both be served as"):
            lower(both)


def test_write_dialogues_is_what_the_tests_think(tmp_path: Path) -> None:
    lines = write_dialogues(tmp_path / "d.jsonl", 6).read_text().splitlines()
    assert [line.count('"human": 3') for line in lines] == [0, 0, 1, 0, 0, 1]


def recorded_by_two(folder: Path, **changes: Any) -> Experiment:
    """As `tiny`, with two responders recorded in the data."""
    source = {"type": "jsonl", "path": str(folder / "dialogues.jsonl"), "recorded_replies": ["m1", "m2"]}
    return tiny(folder, data__source=source, **changes)


def test_recorded_replies_follow_no_strategy(tmp_path: Path) -> None:
    for arms in (
        {"method": "direct", "teacher": "m1", "strategy": "direct"},
        {"method": "improve_human", "teacher": "m1", "strategy": "naive"},
    ):
        with pytest.raises(ValueError, match=r"arms\.teacher = 'm1': recorded replies follow no strategy"):
            recorded_by_two(tmp_path, arms=[arms])
    lowered = lower(recorded_by_two(tmp_path, arms=[{"method": "improve_llm", "teacher": "m1", "strategy": "naive"}]))
    assert lowered.cells[0].lesson.initial is not None
    assert lowered.cells[0].lesson.initial.label == "m1 (recorded)"


def test_rewriting_needs_a_teacher_whatever_is_recorded(tmp_path: Path) -> None:
    arms = [{"method": "improve_llm", "teacher": "m1", "strategy": "naive"}]
    with pytest.raises(ValueError, match=r"'improve_llm' asks a teacher: add a \[teacher\] table"):
        recorded_by_two(tmp_path, arms=arms, teacher=None)


def test_wordings_are_an_axis(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["naive", "combined"], "wording": [0, 1]}]
    lowered = lower(tiny(tmp_path, arms=arms, grid__regime=["sft"], judge__opponents=["naive"]))
    assert [c.lesson.name for c in lowered.cells] == [
        f"method=improve_human teacher=rule-teacher-1 strategy={s} wording={w}"
        for s in ("naive", "combined")
        for w in (0, 1)
    ]
    assert len({c.checkpoint.key for c in lowered.cells}) == 4
    assert [n for n in lowered.report.inputs if "verdicts" in n] == ["a002:verdicts:a000", "a003:verdicts:a001"]
    assert "tiny-sft-improve_human-rule-teacher-1-naive-wording1" in lowered.checkpoints
    plain = lower(tiny(tmp_path, arms=[{"method": "improve_human", "strategy": "naive"}], grid__regime=["sft"]))
    assert plain.cells[0].checkpoint.key == lowered.cells[0].checkpoint.key  # the first wording is the default


def test_no_wording_is_the_first_where_arms_are_compared_with_naive_ones(tmp_path: Path) -> None:
    """One strategy has two wordings and another has one: they are in arms of their own, and compared all the same."""

    def against(*arms: dict[str, Any]) -> list[str]:
        listed = [{"method": "improve_human"} | one for one in arms]
        lowered = lower(tiny(tmp_path, arms=listed, grid__regime=["sft"], judge__opponents=["naive"]))
        return [name for name in lowered.report.inputs if "verdicts" in name]

    naive, lacking = {"strategy": "naive"}, {"strategy": "lacking"}
    assert against(naive | {"wording": [1, 0]}, lacking) == ["a002:verdicts:a001"]
    assert against(naive, {"strategy": "combined", "wording": [0, 1]}) == ["a001:verdicts:a000"]
    assert against(naive, lacking) == ["a001:verdicts:a000"]


IMPROVED = {"method": "improve_human", "strategy": "cognitive"}


@pytest.mark.parametrize(
    ("opponents", "arms", "told"),
    [
        (
            ["naive"],
            [IMPROVED],
            '"naive" is the arm that differs in its strategy alone, and there is none; add strategy',
        ),
        (["naive"], [{"method": "direct"}], '"naive" is the arm'),
        (["naive"], [IMPROVED, {"method": "improve_llm", "strategy": "naive"}], '"naive" is the arm'),
        (["naive"], [IMPROVED, {"method": "improve_human", "strategy": "naive", "wording": 1}], '"naive" is the arm'),
        (["naive"], [IMPROVED, {"method": "improve_human", "strategy": "naive", "wording": 0}], None),
        (["naive"], [{"method": "improve_human", "strategy": "naive"}], None),  # nobody else is there to compare
        (["base", "teacher"], [{"method": "human"}], 'no arm has a teacher; remove "teacher" there'),
        (["teacher"], [{"method": ["human", "direct"]}], None),
    ],
)
def test_an_opponent_that_no_arm_has_is_refused(
    opponents: list[str], arms: list[dict[str, Any]], told: str | None, tmp_path: Path
) -> None:
    changes = {"arms": arms, "judge__opponents": opponents}
    if told is None:
        tiny(tmp_path, **changes)
        return
    with pytest.raises(ValueError, match=re.escape(told)):
        tiny(tmp_path, **changes)


def test_a_union_pools_what_its_strategies_ask(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["cognitive", "affective", "compassionate", "combined"]}]
    *single, combined = lower(tiny(tmp_path, arms=arms, grid__regime=["sft"])).cells
    pooled = combined.lesson.learned
    assert pooled is not None
    assert [pooled.inputs[f"of:{k}"] for k in range(3)] == [c.lesson.learned for c in single]
    alone = lower(tiny(tmp_path, arms=[{"method": "improve_human", "strategy": "combined"}], grid__regime=["sft"]))
    assert alone.cells[0].checkpoint.key == combined.checkpoint.key


def test_direct_may_answer_by_a_strategy(tmp_path: Path) -> None:
    arms = [{"method": "direct", "strategy": ["direct", "chain_of_empathy.cbt"]}]
    plain, reasoned = lower(tiny(tmp_path, arms=arms, grid__regime=["sft"])).cells
    assert plain.checkpoint.key == lower(tiny(tmp_path)).cells[0].checkpoint.key  # the same question
    assert reasoned.lesson.learned != plain.lesson.learned
    assert reasoned.name.endswith("method=direct teacher=rule-teacher-1 strategy=chain_of_empathy.cbt seed=0")


RATED: dict[str, Any] = {
    "ratings": {"provider": "embedded", "model": "rule-judge-1", "good": 3.5},
    "teacher": {"provider": "embedded", "model": "rule-teacher-1"},
}


def test_a_judges_scores_take_the_place_of_ratings(tmp_path: Path) -> None:
    arms = [{"method": "direct"}, {"method": ["improve_human", "improve_llm"], "strategy": "naive"}]
    lowered = lower(tiny(tmp_path, arms=arms, **RATED))
    sets = [s for s in stages(lowered) if isinstance(s.spec, ExamplesSpec) and not s.label.startswith("raising")]
    assert len(sets) == 3 * 4
    for stage in sets:
        scored = {name for name in stage.inputs if name.startswith("scores:")}
        assert isinstance(stage.spec, ExamplesSpec)
        if (stage.spec.purpose, stage.spec.objective) == ("heldout", "sft"):  # every reply: nothing is selected
            assert (scored, stage.spec.good) == (set(), None)
        else:
            learned = {"scores:learned"} if stage.spec.method.type == "direct" else set()
            assert (scored, stage.spec.good) == ({"scores:human"} | learned, 3.5)
    rubrics = [s for s in stages(lowered) if isinstance(s.spec, VerdictsSpec) and isinstance(s.spec.judge, Rubric)]
    assert sorted(s.label for s in rubrics) == [
        "rule-judge-1 rates human (recorded)",
        "rule-judge-1 rates rule-teacher-1 direct",
    ]
    assert all(isinstance(s.spec, VerdictsSpec) and s.spec.split is None for s in rubrics)


def test_another_threshold_rates_nothing_anew(tmp_path: Path) -> None:
    low = lower(tiny(tmp_path, **RATED))
    high = lower(tiny(tmp_path, **RATED | {"ratings": RATED["ratings"] | {"good": 4.5}}))
    shared = [s for s in stages(low) if isinstance(s.spec, VerdictsSpec) and isinstance(s.spec.judge, Rubric)]
    assert len(shared) == 2
    assert {s.key for s in shared} <= keys(high)
    assert low.cells[0].checkpoint.key != high.cells[0].checkpoint.key


def test_method_3_by_the_papers_code(tmp_path: Path) -> None:
    arms = [{"method": "improve_llm", "strategy": "naive"}]
    code = {"train__rejected": "human", "train__original": "human", "train__division": "random"}
    at_random = lower(tiny(tmp_path, arms=arms, **code, **RATED))
    assert at_random.cells[0].lesson.method == ImproveLlm(rejected="human", original="human", division="random")
    assert not [n for s in stages(at_random) for n in s.inputs if n.startswith("scores:")]  # no rating is looked at
    text = lower(tiny(tmp_path, arms=arms)).cells[0].lesson.method
    assert text == ImproveLlm(rejected="initial", original="initial", division="ratings")


def test_only_keeps_matching_cells_and_their_keys(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["naive", "all_three"]}]
    whole = lower(tiny(tmp_path, arms=arms))
    keys_of = {c.name: c.checkpoint.key for c in whole.cells}
    for only, expected in {
        ("strategy=naive",): 2,
        ("regime=sft",): 2,  # and not sft+dpo
        ("regime=sft strategy=naive",): 1,
        ("strategy=naive", "regime=sft"): 3,
        ("regime=*dpo",): 2,
        ("all_three",): 2,
        (whole.cells[0].name,): 1,
    }.items():
        cells = lower(tiny(tmp_path, arms=arms), only=only).cells
        assert len(cells) == expected
        assert {c.name: c.checkpoint.key for c in cells}.items() <= keys_of.items()
    one = lower(tiny(tmp_path, arms=arms), only=["strategy=naive"])
    assert not [s.label for s in stages(one) if "all_three" in s.label]
    assert keys(one) - keys(whole) == {one.report.key}


@pytest.mark.parametrize(
    ("pattern", "teachers"),
    [
        ("gpt-4", ["gpt-4"]),
        ("gpt-4*", ["gpt-4", "gpt-4o"]),
        ("teacher=gpt-4", ["gpt-4"]),
        ("gpt-4 seed=0", ["gpt-4"]),
        ("my*", ["my model [v1]"]),
        ("student=tiny regime=sft method=direct teacher=my model [v1] seed=0", ["my model [v1]"]),
        ("0", ["gpt-4", "gpt-4o", "my model [v1]"]),
        ("s*t", ["gpt-4", "gpt-4o", "my model [v1]"]),  # sft
        ("gpt", []),
        ("seed", []),
        ("s??d*", []),
        ("sf", []),
    ],
)
def test_a_word_is_a_whole_value_or_a_glob_of_it(pattern: str, teachers: list[str], tmp_path: Path) -> None:
    names = ["gpt-4", "gpt-4o", "my model [v1]"]
    source = {"type": "jsonl", "path": str(tmp_path / "dialogues.jsonl"), "recorded_replies": names}
    arms = [{"method": "direct", "teacher": names}]
    x = tiny(tmp_path, data__source=source, arms=arms, grid__regime=["sft"])
    if teachers:
        assert [cell.lesson.teacher for cell in lower(x, only=[pattern]).cells] == teachers
        return
    with pytest.raises(ValueError, match=r"no arm has .*\n  student +tiny\n.*\n.*\n  teacher +gpt-4, gpt-4o, my model"):
        lower(x, only=[pattern])


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("strategy=naiv* method=direct", "no arm has 'strategy=naiv*'"),
        ("regime=sft+dpo method=human", "no arm has all of these together"),  # no teacher, no pairs
        ("method=dirct", "no arm has 'method=dirct', did you mean 'direct'? There are"),
        ("method=bogus", "no arm has 'method=bogus'; there are"),  # like no method, however like "method=" is
        ("methd=human", "no arm has 'methd=human', did you mean 'method'? There are"),
        ("humna", "no arm has 'humna', did you mean 'human'? There are"),
        ("   ", "names no factor"),
    ],
)
def test_only_that_matches_nothing_tells_the_factors_that_there_are(pattern: str, told: str, tmp_path: Path) -> None:
    x = tiny(tmp_path, arms=[{"method": ["direct", "human"]}])
    with pytest.raises(ValueError, match=re.escape(f"only = {pattern!r}: {told}")) as refused:
        lower(x, only=["method=direct", pattern])
    assert str(refused.value).splitlines()[1:] == [
        "  student   tiny",
        "  regime    sft, sft+dpo",
        "  method    direct, human",
        "  teacher   rule-teacher-1",
        "  seed      0",
    ]


def test_arms_have_screens_of_their_own_or_those_of_the_data(tmp_path: Path) -> None:
    arms = [
        {"method": "direct", "screens": ["empty"]},
        {"method": "improve_human", "strategy": "naive"},
        {"method": "improve_human", "strategy": "cognitive", "screens": []},
    ]
    x = tiny(tmp_path, arms=arms)
    x = x.model_copy(update={"data": x.data.model_copy(update={"screens": ("refusal", "cut_off")})})
    lessons = {lesson.name: lesson.screens for lesson in (cell.lesson for cell in lower(x).cells)}
    assert list(lessons.values()) == [("empty",), ("refusal", "cut_off"), ()]
    for cell in lower(x).cells:
        spec = cell.checkpoint.inputs["examples"].spec
        assert isinstance(spec, ExamplesSpec)
        assert spec.screens == lessons[cell.lesson.name]
    with pytest.raises(ValueError, match=r"'refuse', did you mean 'refusal'\? There are empty, cut_off"):
        tiny(tmp_path, arms=[{"method": "direct", "screens": ["refuse"]}])
    with pytest.raises(
        ValueError, match=r"screens = \['empty'\]: method=direct .* is listed twice, and has \[\] there"
    ):
        lower(tiny(tmp_path, arms=[{"method": "direct"}, {"method": "direct", "screens": ["empty"]}]))


def test_an_arm_named_twice_is_one_arm(tmp_path: Path) -> None:
    twice = lower(tiny(tmp_path, arms=[{"method": "direct"}, {"method": ["direct"]}]))
    assert twice.report.key == lower(tiny(tmp_path)).report.key


# ---------------------------------------------------------------- options of methods, by arm

BOTH = {"method": "improve_llm", "strategy": "naive", "rejected": ["initial", "human"]}


def test_both_readings_of_method_3_are_arms_of_one_grid(tmp_path: Path) -> None:
    lowered = lower(tiny(tmp_path, arms=[BOTH], grid__regime=["sft", "sft+dpo"]))
    assert [cell.name.partition(" method=")[2] for cell in lowered.cells if cell.regime == "sft+dpo"] == [
        f"improve_llm teacher=rule-teacher-1 strategy=naive rejected={reading} seed=0" for reading in BOTH["rejected"]
    ]
    for reading in BOTH["rejected"]:
        alone = lower(tiny(tmp_path, train__rejected=reading, arms=[BOTH | {"rejected": []}], grid__regime=["sft+dpo"]))
        (ours,) = [c for c in lowered.cells if c.lesson.options == {"rejected": reading} and c.regime == "sft+dpo"]
        assert ours.checkpoint.key == alone.cells[0].checkpoint.key, "an arm's option is [train]'s"
    dpo = [c.checkpoint.key for c in lowered.cells if c.regime == "sft+dpo"]
    assert len(set(dpo)) == 2
    assert len(set(lowered.checkpoints)) == len(lowered.bases) + 4


def test_an_option_of_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rejected = \['human'\]: method 'direct' has no such option, .* improve_llm"):
        tiny(tmp_path, arms=[{"method": "direct", "rejected": "human"}])


def test_sft_on_both_replies_and_on_one_are_counted_as_arms(tmp_path: Path) -> None:
    arms = [{"method": "improve_human", "strategy": ["naive", "cognitive"], "both_replies": [True, False]}]
    x = tiny(tmp_path, arms=arms, grid__regime=["sft"])
    assert x.cells == len(lower(x).cells) == 4
    assert len({cell.checkpoint.key for cell in lower(x).cells}) == 4


def test_replies_that_are_improved_or_pooled_have_labels_of_their_own(tmp_path: Path) -> None:
    """By whose reply is improved, and by wording, also where a strategy is a union of others."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    wording = '[[wordings]]\nturns = ["{k} {{dialogue}} Reply: {{reply}}"]\n'
    for name in ("one", "two"):
        texts = "".join(wording.format(k=f"{name} {k}") for k in range(2))
        (prompts / f"{name}.toml").write_text(f'name = "{name}"\n{texts}')
    (prompts / "both.toml").write_text('name = "both"\nunion = ["one", "two"]\n')
    arms = [{"method": ["improve_human", "improve_llm"], "strategy": ["one", "both"], "wording": [0, 1]}]
    lowered = lower(tiny(tmp_path, arms=arms, teacher__prompts=str(prompts)))
    labels = [s.label for s in stages(lowered) if s.kind == "replies"]
    assert len(labels) == len(set(labels))
    human, own = "human (recorded)", "rule-teacher-1 direct"
    assert {x for x in labels if " both" in x and not x.startswith("tiny ")} == {
        f"rule-teacher-1 both{wording} on {whose}" for wording in ("", " wording 1") for whose in (human, own)
    }
