"""`empathy trace`: one dialogue in every arm, on stages that are really made as far as they need no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from empathy import dialogues, examples, experiment
from empathy.lower import Lowered, lower
from empathy.records import Dialogue, Reply, Turn, Verdict
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import cli
from tests.experiments import tiny_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rewriting strategies in two regimes, with a screen."""
    path = tiny_file(tmp_path_factory.mktemp("trace"))
    arms = '[[arms]]\nmethod = "improve_human"\nstrategy = ["naive", "sequential"]\n'
    text = path.read_text().replace('[[arms]]\nmethod = "direct"\n', arms)
    path.write_text(text.replace("part_rows = 8", 'part_rows = 8\nscreens = ["too_long"]\nmax_dropped = 1.0'))
    return path


@pytest.fixture(scope="module")
def store(file: Path) -> Store:
    """Dialogues, teacher replies and training sets are made; of the students, the base and the first arm."""
    found = Store.open(str(file.parent / "store"))
    lowered = lower(experiment.load(file))
    about = lowered.report.inputs["dialogues"]
    dialogues.make(about, found, found.writer(about))
    rows = list(found.get(about).read(Dialogue))
    first = next(d.id for d in rows if d.split == "train" and d.ratings["human"] == 3)
    for stage in walk([lowered.report]):
        spec = stage.spec
        if isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher):
            turns = len(spec.responder.turns)
            long = " ".join(["word"] * 120) if stage.label.endswith("sequential") else "I am with you in this."
            _replies(found, stage, about, {d.id: long if d.id == first else f"I see, {d.id}." for d in rows}, turns)
    for stage in walk([lowered.report]):
        if stage.kind == "examples" and stage.inputs["dialogues"] == about:
            examples.make(stage, found, found.writer(stage))
    _answered(found, lowered, about)
    return found


def _replies(store: Store, stage: Stage, about: Stage, texts: dict[str, str], turns: int = 1) -> None:
    writer, made = store.writer(stage), store.get(about)
    said = tuple(t for k in range(turns) for t in (Turn("user", f"ask {k}"), Turn("assistant", f"draft {k}")))[:-1]
    for part in range(len(made.parts)):
        here = [d.id for d in made.read(Dialogue, part) if d.id in texts]
        rows = [Reply(i, "m", texts[i], turns=said if turns > 1 else ()) for i in here]
        writer.write_records(part, rows, Reply)
    writer.commit()


def _answered(store: Store, lowered: Lowered, about: Stage) -> None:
    """The base and the first arm answer; the arm's verdicts against its base are made."""
    made, cell = store.get(about), lowered.cells[0]
    test = [d for d in made.read(Dialogue) if d.split == "test"]
    _replies(store, lowered.report.inputs["base0:replies"], about, {d.id: f"base to {d.id}" for d in test})
    _replies(store, cell.replies, about, {d.id: f"arm to {d.id}" for d in test})
    stage = lowered.report.inputs[f"{cell.slot}:verdicts:base0"]
    writer = store.writer(stage)
    for part in range(len(made.parts)):
        here = [d for d in made.read(Dialogue, part) if d.split == "test"]
        rows = [
            Verdict(
                f"{d.id}{first}", d.id, d.group, "rule-judge", "robust", first, 0, "ok", overall=overall, raw="{why}"
            )
            for d in here
            for first, overall in (("a", "a"), ("b", "tie"))
        ]
        writer.write_records(part, rows, Verdict)
    writer.commit()


def ids(file: Path, store: Store, side: str) -> list[str]:
    about = lower(experiment.load(file)).report.inputs["dialogues"]
    return [d.id for d in store.get(about).read(Dialogue) if d.split == side]


def traced(file: Path, store: Store, capsys: pytest.CaptureFixture[str], ident: str, *more: str) -> list[str]:
    assert cli.main(["trace", ident, str(file), "--store", store.url, *more]) == 0
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_a_training_dialogue_shows_what_it_entered_and_why_it_was_dropped(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    about = lower(experiment.load(file)).report.inputs["dialogues"]
    ident = next(d.id for d in store.get(about).read(Dialogue) if d.split == "train" and d.ratings["human"] == 3)
    lines = traced(file, store, capsys, ident)
    assert lines[0].startswith(f"DIALOGUE {ident}: train side, group g")
    sets = {
        x.partition(": ")[0].split("strategy=")[-1]: x.partition(": ")[2] for x in lines if x.startswith("sft train")
    }
    assert sets == {"naive": "learns the human reply, learns the improved reply", "sequential": "dropped: too_long"}
    pairs = [x.partition(": ")[2] for x in lines if x.startswith("dpo train")]
    assert pairs == ["not selected by its method"] * 2, "its human reply is Good"
    assert any("turn 2 said: draft 1" in x for x in lines), "the turns before the last are stored"
    assert "asked about test dialogues alone" in lines


def test_a_test_dialogue_shows_every_arm_and_what_is_not_made(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ident = ids(file, store, "test")[0]
    lines = traced(file, store, capsys, ident)
    assert f"tiny (base): base to {ident}" in lines
    arms = [x for x in lines if x.startswith("student=tiny")]
    assert len(arms) == 4
    assert arms[0].endswith(f"arm to {ident}")
    assert all(x.endswith("not made yet") for x in arms[1:])
    told = next(x for x in lines if "tiny (base): wins / ties" in x)
    assert "human reply: not made yet" in told
    assert lines[-1].startswith("NOT MADE YET: ")


def test_few_arms_are_quoted_and_what_is_shared_is_shown_once(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ident = ids(file, store, "test")[0]
    lines = traced(file, store, capsys, ident, "--arm", "strategy=naive")
    assert len([x for x in lines if x.startswith("student=")]) == 2
    assert not any("sequential" in x for x in lines)
    assert sum(x.endswith("{why}") for x in lines) == 2
    assert sum(f"I see, {ident}." in x for x in lines) == 1


def test_an_unknown_id_is_answered_with_near_ones(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["trace", "d99", str(file), "--store", store.url]) == 2
    assert "none of the 24 dialogues has this id; there are d9" in capsys.readouterr().err
    assert cli.main(["trace", "d9", str(file), "--store", str(tmp_path / "nowhere")]) == 2
    assert "--until dialogues" in capsys.readouterr().err
