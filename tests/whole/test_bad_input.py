"""What a user gets wrong is told in one message, with exit status 2, before Ray is started or anything is spent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from empathy.store import Store
from jobs import cli
from tests.cluster import profile_file
from tests.experiments import tiny_file, write_dialogues

Text = str
Change = Callable[[Text, Path], Text]


def swapped(old: str, new: str) -> Change:
    """The experiment with one text for another."""

    def change(text: str, folder: Path) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    return change


def emptied(text: str, folder: Path) -> str:
    (folder / "dialogues.jsonl").write_text("")
    return text


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]


def written(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "dialogues.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")


def doubled(text: str, folder: Path) -> str:
    rows = rows_of(folder)
    written(folder, [*rows, rows[3] | {"human_reply": "Another reply to the same id, all the same."}])
    return text


def leaking(text: str, folder: Path) -> str:
    """A later turn of a conversation whose first turn is tested."""
    rows = rows_of(folder)
    later = rows[1] | {
        "id": f"{rows[0]['id']}#turn2",
        "split": "train",
        "turns": [{"role": "user", "content": "It is the second thing that I say in this talk."}],
    }
    written(folder, [rows[0] | {"split": "test"}, later, *rows[2:]])
    return text.replace('{ type = "random", test_fraction = 0.25 }', '{ type = "official" }')


def unrated(text: str, folder: Path) -> str:
    """Nobody rated the human replies, and a method that selects by those."""
    written(folder, [{name: value for name, value in row.items() if name != "ratings"} for row in rows_of(folder)])
    return text.replace('method = "direct"', 'method = "improve_human"\nstrategy = "naive"')


STUDENT = """
[students.tiny-sft-direct-rule-teacher-1]
init = "random"
size = { vocab = 400, hidden = 64, layers = 2, heads = 2, kv_heads = 1, intermediate = 64, positions = 256 }
raise = { optimiser = { learning_rate = 2e-3, epochs = 1, batch_examples = 8 } }
"""


CASES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "misspelt field": (
        swapped("max_length_tokens = 250", "max_lenght_tokens = 250"),
        ("train.max_lenght_tokens", "250", "did you mean 'max_length_tokens'"),
    ),
    "unknown strategy": (
        swapped('method = "direct"', 'method = "improve_human"\nstrategy = "naiv"'),
        ("strategy", "'naiv'", "naive"),
    ),
    "missing file": (
        swapped("dialogues.jsonl", "nowhere.jsonl"),
        ("data.source.path", "nowhere.jsonl", "a .jsonl file"),
    ),
    "value out of range": (
        swapped("test_fraction = 0.25", "test_fraction = 1.25"),
        ("test_fraction", "1.25", "less than 1"),
    ),
    "unknown screen": (
        swapped("part_rows = 8", 'part_rows = 8\nscreens = ["nice"]'),
        ("data.screens", "'nice'", "there are"),
    ),
    "unknown provider": (
        swapped('provider        = "embedded"', 'provider = "opnai"'),
        ("provider", "'opnai'", "[providers.opnai]"),
    ),
    "no key for the teacher": (
        swapped('provider        = "embedded"', 'provider = "openai"'),
        ("OPENAI_API_KEY", "'openai'", "environment variable"),
    ),
    "empty data set": (emptied, ("data.source", "it is empty", "check the file")),
    "duplicate ids": (doubled, ("data.source", "1 id occurs more than once, for example d3", "an id of its own")),
    "test dialogues inside training": (
        leaking,
        ("data.source", "test dialogues inside training", "d0#turn2", "on one side"),
    ),
    "nothing to test on": (
        swapped('{ type = "random", test_fraction = 0.25 }', '{ type = "official" }'),
        ("data.split = 'official'", "no test dialogue is left (train 24, test 0)", "a split that has both"),
    ),
    "unknown model of the embedded provider": (
        swapped('"rule-judge-1"', '"gpt-9"'),
        ("judge.models = 'gpt-9'", "'embedded' has only 'rule-judge-1'"),
    ),
    "a student with another's name": (
        swapped("[train]", STUDENT + "[train]"),
        ("students.tiny-sft-direct-rule-teacher-1", "would both be served as", "rename a student"),
    ),
    "no ratings to select by": (
        unrated,
        (
            "dialogue 'd",
            "its human reply has no rating",
            "a source with ratings",
            "let a judge rate",
            "unrated_is_good",
        ),
    ),
}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a refusal comes only after Ray was started."""

    def refuse(profile: object) -> None:
        raise AssertionError("Ray was started before the refusal")

    monkeypatch.setattr("cluster.runner.ray_session", refuse)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("no_ray")
def test_bad_input_is_refused_before_anything_is_spent(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = CASES[case]
    file, profile = tiny_file(tmp_path), profile_file(tmp_path)
    file.write_text(change(file.read_text(), tmp_path))
    store = tmp_path / "store"
    assert cli.main(["run", str(file), "--on", str(profile), "--store", str(store)]) == 2
    message = capsys.readouterr().err.rpartition("empathy run: ")[2]
    for words in said:
        assert words in message
    assert "Traceback" not in message
    assert message.count("\n") <= 3, "one message"
    made = [a.identity["spec"]["responder"]["type"] for a in Store.open(str(store)).artifacts("replies")]
    assert set(made) <= {"recorded"}
    assert not list(store.glob("ledger/**/*.*")), "nothing was asked"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that ends with status 2."""
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith(f"empathy {words[0]}: ")
    return message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("no_ray")
def test_a_folder_that_may_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    message = refused(["run", str(tiny_file(tmp_path)), "--store", str(closed / "store")], capsys)
    assert f"store = '{closed}/store'" in message
    assert "may write" in message


@pytest.mark.usefixtures("no_ray")
def test_a_store_on_a_device_that_takes_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc refuses new folders to everybody, root too."""
    message = refused(["run", str(tiny_file(tmp_path)), "--store", "/proc/empathy"], capsys)
    assert "store = '/proc/empathy'" in message
    assert "may write" in message


@pytest.mark.usefixtures("no_ray")
def test_a_bucket_server_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    profile = profile_file(tmp_path, '[s3]\nendpoint = "http://127.0.0.1:9"\nregion = "here"\n')
    words = ["run", str(tiny_file(tmp_path)), "--on", str(profile), "--store", "s3://nobodys/store"]
    message = refused(words, capsys)
    assert "store = 's3://nobodys/store'" in message
    assert "http://127.0.0.1:9" in message
    assert "planted-secret" not in message


@pytest.mark.usefixtures("no_ray")
def test_serving_an_unknown_student_names_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPATHY_API_KEY", "k")
    words = ["serve", "tinny", "--file", str(tiny_file(tmp_path)), "--store", str(tmp_path / "store")]
    message = refused(words, capsys)
    assert "student = 'tinny'" in message
    assert "tiny-sft-direct-rule-teacher-1" in message


@pytest.mark.usefixtures("no_ray")
def test_serving_a_student_that_is_not_made_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPATHY_API_KEY", "k")
    words = ["serve", "tiny", "--file", str(tiny_file(tmp_path)), "--store", str(tmp_path / "store")]
    message = refused(words, capsys)
    assert "student = 'tiny'" in message
    assert "empathy run" in message


@pytest.mark.usefixtures("no_ray")
def test_raising_dialogues_that_are_the_tested_ones_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student raised on nothing but the experiment's own dialogues: they are taken out, and nothing is left."""
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace("raising.jsonl", "same.jsonl"))
    write_dialogues(tmp_path / "same.jsonl", 24)
    words = ["run", str(file), "--store", str(tmp_path / "store"), "--on", str(profile_file(tmp_path))]
    assert cli.main(words) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "no dialogue is left of 24 rows" in message
    assert "excluded_id" in message
