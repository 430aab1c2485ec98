"""`empathy report`: the page from what the store holds, on a tiny experiment whose student answers and whose training
is written down here; sets, verdicts and the report are really made."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import NoReturn

import pytest

from cluster import runner
from cluster.steps import here
from empathy import experiment, judges
from empathy.lower import lower
from empathy.records import Dialogue, Logprob, Reply, Verdict
from empathy.specs import ExamplesSpec, RepliesSpec, Teacher, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import cli
from serving.rules import judge
from tests.experiments import tiny_file
from tests.sets import answered, ask, made


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tiny_file(tmp_path)


@pytest.fixture
def store(file: Path) -> Store:
    """All stages are there but the report."""
    return _filled(file)


def _filled(file: Path) -> Store:
    found, lowered = Store.open(str(file.parent / "store")), lower(experiment.load(file))
    made(lowered, found)
    for stage in walk([lowered.report]):
        if stage.kind != "report" and not found.done(stage):
            _write(found, stage)
    return found


def _write(store: Store, stage: Stage, text: str = "I hear you. {}") -> None:
    writer, spec = store.writer(stage), stage.spec
    about = stage.inputs.get("examples" if stage.kind == "logprobs" else "dialogues")
    for part in range(len(store.get(about).parts)) if about and stage.kind != "checkpoint" else ():
        if isinstance(spec, VerdictsSpec):
            asked = judges.askings(stage, store, part)
            writer.write_records(part, [answered(a, judge.reply) for _, a in asked], Verdict)
        elif isinstance(spec, RepliesSpec):
            there = store.get(stage.inputs["dialogues"]).read(Dialogue, part)
            spoken_to = [d for d in there if spec.split in (None, d.split)]
            said = [Reply(d.id, "tiny", text.format(stage.key[: k % 9])) for k, d in enumerate(spoken_to)]
            writer.write_records(part, said, Reply)
        else:
            ids = store.get(stage.inputs["examples"]).table(part).column("id").to_pylist()
            sides = (
                ("reply",)
                if store.get(stage.inputs["examples"]).identity["spec"]["objective"] == "sft"
                else ("chosen", "rejected")
            )
            writer.write_records(part, [Logprob(i, side, -20.0, 10) for i in ids for side in sides], Logprob)
    writer.commit()


def test_the_numbers_of_a_choice_are_made_when_all_that_they_need_is_there(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(file), "--store", store.url, "--only", "regime=sft"]) == 0
    *_, page = capsys.readouterr().out.split()
    assert Path(page).parent.name.startswith("only-regime=sft-")
    text = Path(page).read_text()
    assert "student=tiny regime=sft " in text
    assert "sft+dpo" not in text
    assert not store.done(lower(experiment.load(file)).report)


def test_held_out_pairs_that_there_are_none_of_leave_their_columns_empty(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All test replies of people are Good: no pair shows a better one. The report tells everything else."""
    data = file.parent / "dialogues.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [row | {"split": "test", "ratings": {"human": 3}} if k % 4 == 0 else row for k, row in enumerate(rows)]
    rows = [{"split": "train"} | row for row in rows]
    data.write_text("\n".join(map(json.dumps, rows)))
    file.write_text(file.read_text().replace('{ type = "random", test_fraction = 0.25 }', '"official"'))
    store = _filled(file)
    pairs = lower(experiment.load(file)).report.inputs["heldout:dpo:0"]
    assert store.get(pairs).rows == 0
    assert cli.main(["report", str(file), "--store", store.url]) == 0
    said = capsys.readouterr().out
    base, sft, both = [re.split(r"  +", line.strip()) for line in said.splitlines() if " 2.000" in line]
    assert (base[-3:-1], sft[-3:-1], both[-3:-1]) == (["–", "–"],) * 3, said
    estimates = read_csv(file.parent / "build/reports/tiny/estimates.csv")
    accuracies = [row for row in estimates if row["measure"].startswith("preference_accuracy")]
    assert accuracies
    assert {(row["value"], row["n"]) for row in accuracies} == {("", "0")}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_arms_that_lack_something_are_left_out_and_named(
    file: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report of the whole stays to be made; that of the rest lies beside where its page would lie."""
    lowered = lower(experiment.load(file))
    sft, both = lowered.cells
    store.discard("verdicts", lowered.report.inputs[f"{both.slot}:verdicts:human"].key)
    for _ in range(2):  # made, and then drawn anew
        assert cli.main(["report", str(file), "--store", store.url]) == 1
        said = capsys.readouterr()
        assert f"empathy run {file} --store {store.url}` makes them" in said.err
        assert "LEFT OUT, 1 of 2 arms (so are comparisons with them):\n  sft+dpo direct\n    verdicts/" in said.out
        page = Path(said.out.split()[-1])
        assert page.parent == Path("build/reports/tiny/partial")
        text = page.read_text()
        assert "<b>1 arm is left out</b>" in text
        assert "against the human reply: not made" in text
    assert not store.done(lowered.report)
    assert sft.name.split()[1] == "regime=sft"


def test_a_run_whose_sets_fail_reports_the_other_arms(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reply of one arm's teacher is caught by a screen. Nothing else is left to do, so Ray is not needed."""

    def start(*args: object) -> NoReturn:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runner, "ray_session", start)
    arm = '\n[[arms]]\nmethod = "improve_human"\nstrategy = "naive"\nscreens = ["names_itself_ai"]\n[grid]'
    file.write_text(file.read_text().replace("\n[grid]", arm))
    found, lowered = Store.open(str(file.parent / "store")), lower(experiment.load(file))
    caught = next(s for s in walk([lowered.report]) if s.label.startswith("rule-teacher-1 naive"))
    for stage in walk([lowered.report]):
        failing = isinstance(stage.spec, ExamplesSpec) and stage.spec.screens
        if stage.kind == "report" or failing or not all(map(found.done, stage.inputs.values())):
            continue
        if stage == caught:
            _write(found, stage, "As an AI language model, I care.")
        elif isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher):
            ask(stage, found)
        elif here.takes(stage):
            here.make(stage, found)
        else:
            _write(found, stage)
    assert cli.main(["run", str(file), "--store", found.url]) == 1
    said = capsys.readouterr()
    assert said.err.count("for good: max_dropped = 0.2: ") == 2
    assert "Go on with" not in said.err
    out = said.out.partition("LEFT OUT, 2 of 4 arms")[2].splitlines()
    assert [line.strip() for line in out if "naive" in line and "examples/" not in line] == [
        "sft improve_human naive", "sft+dpo improve_human naive"
    ]  # fmt: skip
    assert sum("max_dropped = 0.2: " in line and "names_itself_ai" in line for line in out) == 2
    assert "<b>2 arms are left out</b>" in Path(out[-1]).read_text()


def test_what_is_lacking_is_said_and_not_made(file: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    report = lower(experiment.load(file)).report
    lacking = next(stage for stage in report.inputs.values() if stage.kind == "verdicts")
    store.discard(lacking.kind, lacking.key)
    assert cli.main(["report", str(file), "--store", store.url]) == 2
    assert "2 stages are not made in" in capsys.readouterr().err
    assert not store.done(report)
