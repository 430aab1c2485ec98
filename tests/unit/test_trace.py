"""`empathy trace`: one dialogue in every arm, on stages that are really made as far as they need no model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from empathy import dialogues, examples, experiment
from empathy.lower import Lowered, lower
from empathy.records import Demonstration, Dialogue, Logprob, Reply, Score, Side, Turn, Verdict
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import cli
from tests.experiments import tiny_file
from tests.sets import made


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
            long = " ".join(["word"] * 120) if " sequential on " in stage.label else "I am with you in this."
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
    """The base and the first arm answer and are measured; the arm's verdicts against its base are made."""
    made, cell = store.get(about), lowered.cells[0]
    test = [d for d in made.read(Dialogue) if d.split == "test"]
    _replies(store, lowered.report.inputs["base0:replies"], about, {d.id: f"base to {d.id}" for d in test})
    _replies(store, cell.replies, about, {d.id: f"arm to {d.id}" for d in test})
    for slot, nats in (("base0", -30.0), (cell.slot, -20.0)):
        for what, sides in (("nll", ("reply",)), ("pairs", ("chosen", "rejected"))):
            _measured(store, lowered.report.inputs[f"{slot}:{what}:0"], nats, sides)
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


def _measured(store: Store, stage: Stage, nats: float, sides: tuple[Side, ...]) -> None:
    """`nats` in 10 tokens for a reply or the chosen one, as much in 20 for the rejected one."""
    made, writer = store.get(stage.inputs["examples"]), store.writer(stage)
    for part in range(len(made.parts)):
        found = made.table(part).column("id").to_pylist()
        rows = [Logprob(i, side, nats, 20 if side == "rejected" else 10) for i in found for side in sides]
        writer.write_records(part, rows, Logprob)
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
    text = " ".join(lines)
    lesson = "method=improve_human teacher=rule-teacher-1 strategy"
    assert f"sft train {lesson}=naive (sft, sft+dpo): learns the human reply, learns the improved reply; human" in text
    assert f"sft train {lesson}=sequential (sft, sft+dpo): dropped: too_long; human reply 3 Good" in text
    for strategy in ("naive", "sequential"):
        said = f"dpo train {lesson}={strategy} (sft+dpo): not selected by its method; human reply 3 Good"
        assert said in text, "its human reply is Good"
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
    told = next(x for x in lines if "against tiny (base): wins shown first, ties shown second" in x)
    assert "human reply: not made yet" in told
    assert lines[-1].startswith("NOT MADE YET: ")


def test_a_test_dialogue_shows_what_students_give_to_the_held_out_replies(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    about = lower(experiment.load(file)).report.inputs["dialogues"]
    bad = next(d.id for d in store.get(about).read(Dialogue) if d.split == "test" and d.ratings["human"] < 3)
    lines = traced(file, store, capsys, bad, "--arm", "strategy=naive")
    base, first, second = (i for i, x in enumerate(lines) if x.startswith(("tiny (base)", "student=tiny")))
    assert "held-out reply: -30.00 nats in 10 tokens (-3.000 a token)" in lines[base:first]
    assert "held-out reply: -20.00 nats in 10 tokens (-2.000 a token)" in lines[first:second]
    pair = next(x for x in lines[first:second] if x.startswith("held-out pair: "))
    chosen = "held-out pair: improved -20.00 nats in 10 tokens (-2.000 a token), human -20.00 nats in 20 tokens"
    assert pair.startswith(chosen)
    assert "wrong summed, wrong per token" in " ".join(lines[first:second]), "-2 a token is less than -1"
    assert "held-out reply: not made yet" in lines[second:]


def test_a_test_dialogue_is_scored_on_and_never_learned_from(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    about = lower(experiment.load(file)).report.inputs["dialogues"]
    bad = next(d.id for d in store.get(about).read(Dialogue) if d.split == "test" and d.ratings["human"] < 3)
    text = " ".join(traced(file, store, capsys, bad))
    assert "strategy=naive: scored on the improved reply dpo heldout" in text
    assert "learns" not in text


def test_a_judges_scores_stand_beside_its_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_file(tmp_path)
    text = re.sub(
        r"source    = .*\nsplit", 'source    = { type = "sample" }\nlimit = 96\nsplit', file.read_text(), count=1
    )
    text = text.replace("unrated_is_good = true", "")
    file.write_text(text + '[ratings]\nprovider = "embedded"\nmodel = "rule-judge-1"\ngood = 3.0\n')
    lowered, store = lower(experiment.load(file)), Store.open(str(tmp_path / "store"))
    made(lowered, store)
    stage = next(s for s in walk([lowered.report]) if s.label == "sft train method=direct teacher=rule-teacher-1")
    human, learned = (
        {s.dialogue_id: s.overall or 0 for s in store.get(stage.inputs[f"scores:{who}"]).read(Score)}
        for who in ("human", "learned")
    )
    entered = {e.dialogue_id for e in store.get(stage).read(Demonstration)}
    train = ids(file, store, "train")
    inside, outside = ([d for d in train if (d in entered) == side][:2] for side in (True, False))
    assert (len(inside), len(outside)) == (2, 2)
    for ident in (*inside, *outside):
        told = " ".join(traced(file, store, capsys, ident)).partition(stage.label)[2].partition(" dpo train ")[0]
        scores = f"human reply {human[ident]:.2f} of 5, teacher reply {learned[ident]:.2f} of 5, Good from 3"
        assert told.strip().endswith(scores)
        assert ("not selected by its method" in told) == (ident in outside)
        assert (min(human[ident], learned[ident]) >= 3) == (ident in inside)


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
