"""Keys: what enters, what does not, and that every process agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from empathy import screens
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    Human,
    Lora,
    MethodSpec,
    Optimiser,
    PaperSplit,
    RandomSplit,
    RepliesSpec,
    ReportSpec,
    Sft,
    Student,
    Teacher,
)
from empathy.stages import Stage, canonical, differences, from_json, missing, nearest, root_differences, to_json, walk

ROOT = Path(__file__).parents[2]


def dialogues(**changes: Any) -> Stage:
    return Stage(DialoguesSpec(**{"source": "jsonl", "digest": "d1", "split": PaperSplit()} | changes))


def teacher(source: Stage, text: str = "Rewrite: {reply}", label: str = "") -> Stage:
    spec = RepliesSpec(responder=Teacher(provider="p", model="m", turns=(text,)))
    return Stage(spec, {"dialogues": source}, label=label)


def sft(rate: float, **changes: Any) -> CheckpointSpec:
    return CheckpointSpec(objective=Sft(optimiser=Optimiser(learning_rate=rate, **changes), tuning=Lora()))


def chain(text: str = "Rewrite: {reply}") -> dict[str, Stage]:
    """dialogues -> two teachers, of which one reads `text` -> a report over both."""
    source = dialogues()
    made = {"dialogues": source, "reworded": teacher(source, text), "other": teacher(source, "Reply to: {dialogue}")}
    return made | {"report": Stage(ReportSpec(), {"a": made["reworded"], "b": made["other"]})}


PRINT_KEYS = """
from tests.unit.test_stages import chain, sft, Stage
print(*[stage.key for stage in chain().values()], Stage(sft(5e-5)).key)
"""


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_keys_are_equal_in_every_process(seed: str) -> None:
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_KEYS], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [stage.key for stage in chain().values()] + [Stage(sft(5e-5)).key]


def test_a_key_is_the_sha256_of_what_it_says() -> None:
    """By an independent way: sha256sum of the text written out by hand."""
    text = '{"inputs":{},"kind":"report","revision":4,"spec":{"bootstrap":10000,"examples_shown":5,"seed":0}}'
    stage = Stage(ReportSpec())
    if canonical(stage.identity) != text:  # the spec may gain fields: then this text must be written anew
        pytest.fail(f"the identity of a report is now {canonical(stage.identity)}")
    digest = subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True).stdout
    assert stage.key == digest[:32]


def test_equal_values_are_one_key() -> None:
    assert Stage(sft(1e-4)).key == Stage(sft(0.0001)).key
    assert Stage(sft(1e-4)).key == Stage(sft(1e-4, batch_examples=16)).key  # an omitted default and a given one
    assert Stage(sft(1e-4)).key == Stage(sft(1e-4, epochs=3)).key  # an integer where a float is meant
    parsed = CheckpointSpec.model_validate_json(sft(1e-4).model_dump_json())
    assert Stage(parsed).key == Stage(sft(1e-4)).key
    zeros = [dialogues(options={"x": zero}).key for zero in (0.0, -0.0)]
    assert zeros[0] == zeros[1]
    assert dialogues(options={"a": 1, "b": 2}).key == dialogues(options={"b": 2, "a": 1}).key


def test_every_setting_is_in_the_key() -> None:
    keys = {
        Stage(sft(1e-4)).key,
        Stage(sft(2e-4)).key,
        Stage(sft(1e-4, batch_examples=8)).key,
        Stage(sft(1e-4).model_copy(update={"seed": 1})).key,
        Stage(sft(1e-4).model_copy(update={"precision": "fp32"})).key,
        Stage(sft(1e-4), {"examples": dialogues()}).key,
        Stage(sft(1e-4), {"policy": dialogues()}).key,
        Stage(sft(1e-4), {"examples": dialogues(digest="d2")}).key,
    }
    assert len(keys) == 8


def test_place_and_names_are_not_in_the_key() -> None:
    spec = dialogues().spec
    assert Stage(spec, locator={"path": "/a"}, label="one").key == Stage(spec, locator={"path": "s3://b"}).key


def test_revision_is_in_the_key() -> None:
    class Later(ReportSpec):
        revision = ReportSpec.revision + 1

    assert Stage(Later()).key != Stage(ReportSpec()).key


def test_a_set_that_no_revised_screen_looks_at_is_what_it_was() -> None:
    def revision(method: MethodSpec, *names: str) -> object:
        return Stage(ExamplesSpec(method=method, objective="sft", screens=names)).identity["revision"]

    assert [revision(Direct()), revision(Direct(), "empty", "too_long", "copies_input")] == [1, 1]
    assert [revision(Direct(), "empty", name) for name in screens.NAMES] == [1, 2, 2, 1, 1, 2, 2, 2]
    assert revision(Human(), *screens.NAMES) == 1  # nobody but people speaks


def test_dpo_in_bf16_is_not_what_it_was_and_all_else_is() -> None:
    def revision(cls: type[Dpo | Sft], precision: str) -> object:
        objective = cls(optimiser=Optimiser(learning_rate=1e-5), tuning=Lora())
        return CheckpointSpec.model_validate({"objective": objective, "precision": precision}).revision

    assert [revision(cls, precision) for cls in (Sft, Dpo) for precision in ("fp32", "bf16")] == [1, 1, 1, 2]


@pytest.mark.parametrize("value", [{1, 2}, b"x", Path("/x"), float("nan"), float("inf"), {1: "a"}, object()])
def test_what_has_no_one_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"spec\.options\.inner\[1\]"):
        _ = dialogues(options={"inner": ["fine", value]}).key


def test_a_reworded_prompt_changes_its_own_branch_only() -> None:
    before, after = chain(), chain("Rewrite, warmly: {reply}")
    changed = {name for name in before if before[name].key != after[name].key}
    assert changed == {"reworded", "report"}


def test_walk_yields_each_stage_once_inputs_first() -> None:
    made = chain()
    order = list(walk([made["report"], made["other"], made["report"]]))
    assert len(order) == 4
    for stage in order:
        assert all(order.index(i) < order.index(stage) for i in stage.inputs.values())


def test_a_finished_stage_hides_its_ancestors() -> None:
    made = chain()
    assert missing([made["report"]], lambda stage: stage == made["report"]) == []
    assert missing([made["report"]], lambda stage: stage == made["reworded"]) == [
        made["dialogues"],  # the other teacher still needs it
        made["other"],
        made["report"],
    ]
    done = {made["reworded"].key, made["other"].key}
    assert missing([made["report"]], lambda stage: stage.key in done) == [made["report"]]


def test_each_stage_is_asked_about_once() -> None:
    asked: list[str] = []
    missing([chain()["report"]], lambda stage: bool(asked.append(stage.key)))
    assert len(asked) == len(set(asked)) == 4


def test_a_graph_travels_as_text() -> None:
    made = chain()
    located = Stage(made["dialogues"].spec, locator={"path": "/data"}, label="W&P")
    targets = [
        Stage(ReportSpec(seed=1), {"x": teacher(located)}, label="r"),
        teacher(located),
        made["report"],
    ]
    back = from_json(to_json(targets))
    assert back == targets
    assert [stage.label for stage in back] == ["r", "", ""]
    assert back[0].inputs["x"].inputs["dialogues"].locator == {"path": "/data"}
    assert back[2].inputs["a"].inputs["dialogues"] is back[2].inputs["b"].inputs["dialogues"]
    assert to_json(back) == to_json(targets)
    assert type(back[0].inputs["x"].spec) is RepliesSpec


def test_a_graph_of_other_code_is_refused() -> None:
    graph = json.loads(to_json([dialogues()]))
    graph["stages"][0]["key"] = "0" * 32
    with pytest.raises(ValueError, match="another version of the code"):
        from_json(json.dumps(graph))


def test_differences_name_the_leaf() -> None:
    ours = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None, "f": [1]}
    theirs = {"a": {"b": 1, "c": [1, {"d": 3}]}, "f": [1, 2], "g": 0}
    assert differences(ours, theirs) == [
        "a.c[1].d: 2 here, 3 there",
        "e: None here, (absent) there",
        "f: [1] here, [1, 2] there",
        "g: (absent) here, 0 there",
    ]
    assert differences(ours, ours) == []


def test_long_texts_are_shown_where_they_differ() -> None:
    common = "word " * 100
    (line,) = differences({"turns": common + "warm"}, {"turns": common + "cold"})
    assert "warm' here" in line
    assert "cold' there" in line
    assert len(line) < 200


def test_nearest_is_the_sibling_of_fewest_differences() -> None:
    ours = Stage(sft(1e-4)).identity
    near = Stage(sft(2e-4)).identity
    far = Stage(sft(3e-4, batch_examples=4)).identity
    assert nearest(ours, [far, dialogues().identity, near, ours]) == (
        near,
        ["spec.objective.optimiser.learning_rate: 0.0001 here, 0.0002 there"],
    )
    assert nearest(ours, [ours, dialogues().identity]) is None


def test_differences_of_inputs_are_followed_to_their_root() -> None:
    ours, theirs = chain(), chain("Rewrite, warmly: {reply}")
    known = {stage.key: stage.identity for made in (ours, theirs) for stage in made.values()}
    (line,) = root_differences(ours["report"].key, theirs["report"].key, known)
    assert line == "a: spec.responder.turns[0]: 'Rewrite: {reply}' here, 'Rewrite, warmly: {reply}' there"
    del known[theirs["reworded"].key]
    (line,) = root_differences(ours["report"].key, theirs["report"].key, known)
    assert line == f"a: {ours['reworded'].key} here, {theirs['reworded'].key} there"


def test_a_shared_root_is_told_by_each_path_once() -> None:
    split = RandomSplit(seed=1)
    ours, theirs = dialogues(), dialogues(split=split)
    reports = [Stage(ReportSpec(), {"a": d, "b": d}) for d in (ours, theirs)]
    known = {stage.key: stage.identity for stage in (ours, theirs, *reports)}
    lines = root_differences(reports[0].key, reports[1].key, known)
    assert "a: spec.split.type: 'paper' here, 'random' there" in lines
    assert all(line.startswith("a: ") for line in lines)


def test_students_differ_by_their_checkpoint() -> None:
    """A replies stage of a student names its checkpoint by key: two checkpoints, two keys."""
    spec = RepliesSpec(responder=Student())
    keys = {Stage(spec, {"checkpoint": Stage(sft(rate))}).key for rate in (1e-4, 2e-4)}
    assert len(keys) == 2
