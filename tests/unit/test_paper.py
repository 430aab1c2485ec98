"""The shipped grids: what they plan, counted by hand; what arms share is made once; students see no strategy."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from empathy import experiment, prompts, screens
from empathy.files import open_files
from empathy.lower import Cell, Lowered, lower
from empathy.specs import ExamplesSpec, Pooled, Recorded, RepliesSpec, Student, Teacher, VerdictsSpec
from empathy.stages import Stage, canonical, walk
from empathy.store import Store
from tests.sets import made

FOLDER = Path(__file__).parents[2] / "jobs" / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))
STRATEGIES = ["naive", "cognitive", "affective", "compassionate", "combined", "all_three", "sequential", "lacking"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files where the experiments look for data: planning reads their bytes alone."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("welivita_pu/study2.csv", "empathetic_dialogues/sad.csv"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("any\n")
    (folder / "empathetic_dialogues" / "official_split_reconstructed.json").write_text("{}")
    return folder


@pytest.fixture
def paper(data: Path, monkeypatch: pytest.MonkeyPatch) -> Lowered:
    monkeypatch.setenv("EMPATHY_DATA", str(data))
    return lower(experiment.load(FOLDER / "paper.toml"))


def stages(lowered: Lowered) -> list[Stage]:
    return list(walk([lowered.report]))


def responder(stage: Stage) -> object:
    return stage.spec.responder if isinstance(stage.spec, RepliesSpec) else None


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_shipped_experiment_loads_and_plans(file: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPATHY_DATA", str(data))
    x = experiment.load(file)
    assert x.name == file.stem
    lowered = lower(x)
    assert len(lowered.cells) == x.cells
    assert len({s.key for s in stages(lowered)}) == len(stages(lowered))


def test_the_counts_of_the_paper_by_hand(paper: Lowered) -> None:
    """20 arms: 4 recorded teachers answer, and 2 methods x 8 strategies rewrite. Two students, three regimes, one
    seed."""
    assert Counter(c.student for c in paper.cells) == {"llama": 60, "mistral": 60}
    assert Counter((c.lesson.method.type, c.regime) for c in paper.cells if c.student == "llama") == {
        (method, regime): n
        for method, n in (("direct", 4), ("improve_human", 8), ("improve_llm", 8))
        for regime in ("sft", "dpo", "sft+dpo")
    }
    of_a_student = {
        "replies": 1 + 60,  # its base, and 20 lessons x 3 regimes
        "checkpoint": 1 + 60,  # the same; sft+dpo starts from the sft arm's
        # The references of dpo (the base) and of sft+dpo (the sft checkpoint) on each lesson's pairs, then held-out
        # replies and held-out pairs of each lesson: the base's and those of its three students.
        "logprobs": 20 * 2 + 20 * 2 * (1 + 3),
        # Two judges: 60 arms against base, human and teacher; 7 strategies x 2 methods x 3 regimes against naive; the
        # base against the human and 20 teachers.
        "verdicts": 2 * (60 * 3 + 7 * 2 * 3 + 1 + 20),
    }
    assert Counter(s.kind for s in stages(paper)) == {
        "dialogues": 1,
        # the human's, 4 recorded, gpt-4o's answers; each method's 7 strategies, and combined, which pools three of them
        "replies": 1 + 4 + 1 + 2 * (7 + 1) + 2 * of_a_student["replies"],
        "examples": 20 * 4,  # sft and dpo, training and held-out; the same for both students
        "report": 1,
        **{kind: 2 * of_a_student[kind] for kind in ("checkpoint", "logprobs", "verdicts")},
    }
    assert len(stages(paper)) == 1720


def test_teachers_are_asked_once(paper: Lowered) -> None:
    """15 stages ask: gpt-4o's answers, and 7 strategies for each method. Combined asks nothing of its own."""
    asked = [s for s in stages(paper) if isinstance(responder(s), Teacher)]
    assert len(asked) == 1 + 7 + 7
    turns = [len(s.spec.responder.turns) for s in asked if isinstance(s.spec, RepliesSpec)]  # type: ignore[union-attr]
    assert sum(turns) == 1 + 2 * (6 + 3)  # only sequential is a chat of three turns
    for pooled in [s for s in stages(paper) if isinstance(responder(s), Pooled)]:
        assert {pooled.inputs[f"of:{k}"].key for k in range(3)} <= {s.key for s in asked}
    assert sum(isinstance(responder(s), Recorded) for s in stages(paper)) == 5


def test_what_arms_share_is_one_stage(paper: Lowered) -> None:
    def cells(**wanted: object) -> list[Cell]:
        return [c for c in paper.cells if all(getattr(c, k) == v for k, v in wanted.items())]

    for student in ("llama", "mistral"):
        base = paper.bases[student]
        sft = {c.lesson.name: c for c in cells(student=student, regime="sft")}
        for cell in cells(student=student, regime="sft+dpo"):
            assert cell.checkpoint.inputs["policy"].key == sft[cell.lesson.name].checkpoint.key
            reference = cell.checkpoint.inputs["reference"]
            assert reference.inputs["checkpoint"].key == sft[cell.lesson.name].checkpoint.key
        dpo = {c.lesson.name: c for c in cells(student=student, regime="dpo")}
        for name, cell in dpo.items():
            assert cell.checkpoint.inputs["reference"].inputs["checkpoint"].key == base.key
            both = next(c for c in cells(student=student, regime="sft+dpo") if c.lesson.name == name)
            assert cell.checkpoint.inputs["examples"].key == both.checkpoint.inputs["examples"].key
        answers = {s.key for s in stages(paper) if isinstance(responder(s), Student) and s.inputs["checkpoint"] == base}
        assert len(answers) == 1
        against = [s for s in stages(paper) if isinstance(s.spec, VerdictsSpec) and s.inputs["b"].key in answers]
        assert len(against) == 2 * 60  # all its arms, under each judge


def test_a_second_seed_adds_training_alone(paper: Lowered, data: Path) -> None:
    x = experiment.load(FOLDER / "paper.toml")
    two = lower(x.model_copy(update={"grid": x.grid.model_copy(update={"seed": (0, 1)})}))
    added = Counter(s.kind for s in stages(two)) - Counter(s.kind for s in stages(paper))
    # The base's references and the base's answers, scores and verdicts are there already.
    assert added == {"checkpoint": 120, "replies": 120, "logprobs": 2 * (20 + 20 * 2 * 3), "verdicts": 2 * 2 * 222}


def test_targeted_meets_naive_head_to_head(paper: Lowered) -> None:
    names = {c.slot: c for c in paper.cells}
    pairs = [
        (names[slot], names[opponent])
        for slot, _, opponent, *_ in (n.split(":") for n in paper.report.inputs if ":verdicts:a" in n)
    ]
    assert len(pairs) == 2 * 2 * 42
    for ours, naive in pairs:
        assert ours.lesson.strategy in set(STRATEGIES) - {"naive"}
        assert naive.name == ours.name.replace(f"strategy={ours.lesson.strategy}", "strategy=naive")


def test_students_see_the_conversation_alone(paper: Lowered) -> None:
    """No word of a strategy is in any stage but the teacher's; what a student is trained on and asked is the dialogue
    (`empathy.examples` and generating put nothing but `system` before it)."""
    turns = [turn for s in STRATEGIES for part in prompts.parts(s) for turn in prompts.load(part)]
    sentences = {line.strip() for turn in turns for line in turn.splitlines() if len(line) > 30}
    assert len(sentences) > 10
    for stage in stages(paper):
        if not isinstance(responder(stage), Teacher):
            text = canonical(stage.identity["spec"])
            assert not [s for s in sentences if canonical(s)[1:-1] in text], stage
        if isinstance(stage.spec, ExamplesSpec):
            assert stage.spec.system is None
        if isinstance(who := responder(stage), Student):
            assert who.system is None


def test_labels_have_the_names_that_people_use_and_tell_stages_apart(paper: Lowered) -> None:
    labels = Counter((s.kind, s.label) for s in stages(paper))
    assert not [label for _, label in labels if re.search(r"\b(a\d{3}|base\d|teacher:\d|human$)", label)]
    assert not [label for (kind, label), n in labels.items() if n > 1 and kind in ("replies", "logprobs", "verdicts")]
    arm = "student=llama regime=sft method=direct teacher=gpt-4 seed=0"
    judge = "google/gemini-2.5-flash"
    for found in (
        ("replies", "gpt-4o naive on human (recorded)"),
        ("replies", "gpt-4o naive on gpt-4o direct"),
        ("logprobs", f"held-out NLL of {arm}"),
        ("logprobs", "held-out pairs of mistral (base) on method=direct teacher=gpt-4"),
        ("verdicts", f"{arm} against llama (base) by {judge}"),
        ("verdicts", f"{arm} against the teacher's reply (method=direct teacher=gpt-4) by {judge}"),
        ("verdicts", f"llama (base) against the human reply by {judge}"),
    ):
        assert labels[found] == 1, found


def test_training_sets_are_screened_and_held_out_ones_are_not(paper: Lowered) -> None:
    for stage in stages(paper):
        if isinstance(stage.spec, ExamplesSpec):
            recorded = {"empty", "too_long", "copies_input", "echoes_label"}
            used = recorded if stage.spec.method.learns == "answers" else set(screens.NAMES)
            assert set(stage.spec.screens) == (used if stage.spec.purpose == "train" else set()), stage
    small = experiment.load(FOLDER / "paper_small.toml")
    assert set(small.data.screens) == set(screens.NAMES)


def test_the_docs_list_every_screen() -> None:
    text = (FOLDER.parents[1] / "docs" / "stages.md").read_text()
    listed = text.partition("## Screens")[2].partition("\n## ")[0]
    assert [line.split("`")[1] for line in listed.splitlines() if line.startswith("| `")] == list(screens.NAMES)


def test_the_small_grid_is_the_papers_on_one_small_student(data: Path) -> None:
    small = lower(experiment.load(FOLDER / "paper_small.toml"))
    assert len(small.cells) == 20 * 3
    assert Counter(s.kind for s in stages(small)) == {
        "dialogues": 1,
        "replies": 1 + 4 + 2 * 8 + 61,  # one of the four answers is what improve_llm improves
        "examples": 1 + 20 * 4,  # and what raises the base
        "checkpoint": 61,
        "logprobs": 200,
        "verdicts": 60 * 3 + 42 + 21,
        "report": 1,
    }


def test_every_set_of_the_small_grid_can_be_made(tmp_path: Path) -> None:
    store = Store(open_files(str(tmp_path)))
    lowered = lower(experiment.load(FOLDER / "paper_small.toml"))
    made(lowered, store)
    sets = {s.key: store.get(s) for s in stages(lowered) if s.kind == "examples"}
    assert len(sets) == 81
    assert all(artifact.rows >= 5 for artifact in sets.values())
    pairs = {c.lesson.name: sets[c.checkpoint.inputs["examples"].key].rows for c in lowered.cells if c.regime == "dpo"}
    strategies = {s: pairs[f"method=improve_human teacher=rule-teacher-1 strategy={s}"] for s in STRATEGIES}
    assert strategies["combined"] == 3 * strategies["cognitive"] == 3 * strategies["naive"]


def test_10_000_stages_are_lowered_in_seconds(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """paper.toml with seven seeds is 10,168 stages. It takes about a second; the bar leaves room for a busy machine."""
    monkeypatch.setenv("EMPATHY_DATA", str(data))
    x = experiment.load(FOLDER / "paper.toml")
    x = x.model_copy(update={"grid": x.grid.model_copy(update={"seed": tuple(range(7))})})
    began = time.process_time()
    found = stages(lower(x))
    assert time.process_time() - began < 10
    assert len(found) == 1720 + 6 * (120 + 120 + 280 + 888)
