"""What `empathy submit` sends of the files that an experiment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from empathy import experiment
from empathy.lower import lower
from jobs import shipping
from tests.experiments import tiny_file, write_dialogues


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder that the cluster gets."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


def test_an_experiment_on_files_of_this_machine_is_the_same_experiment_there(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tiny_file(tmp_path / "here")
    (tmp_path / "my.jinja").write_text("{{ messages }}")
    (tmp_path / "prompts").mkdir()
    text = file.read_text().replace("[students.tiny]\n", "[students.tiny]\ntemplate = 'my.jinja'\n")
    file.write_text(text.replace("[teacher]\n", '[teacher]\nprompts = "./prompts"\n'))
    here = lower(experiment.load(file)).report.key
    assert shipping.ship(file, there) == []
    for path in (tmp_path / "here").glob("*.jsonl"):
        path.unlink()
    (tmp_path / "my.jinja").unlink()
    (tmp_path / "prompts").rmdir()
    monkeypatch.chdir(there)
    assert lower(experiment.load("tiny.toml")).report.key == here
    assert {p.name for p in there.glob("files/*/*")} == {"dialogues.jsonl", "raising.jsonl", "my.jinja", "prompts"}


def test_what_is_nowhere_here_or_placed_by_a_variable_that_is_sent_is_left_alone(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_file(tmp_path)
    text = file.read_text().replace(f"{tmp_path}/raising", "/nowhere/raising")
    file.write_text(text.replace(str(tmp_path), "${EMPATHY_DATA}"))
    monkeypatch.setenv("EMPATHY_DATA", str(tmp_path))
    assert shipping.ship(file, there, ("EMPATHY_DATA",)) == []
    assert (there / "tiny.toml").read_text() == file.read_text()
    assert not (there / "files").exists()
    assert shipping.ship(file, there) == [], "a variable that is not sent: its file is"
    assert (there / "files/0/dialogues.jsonl").is_file()


def test_what_is_too_large_must_be_at_a_path_of_every_machine(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_file(tmp_path)
    write_dialogues(tmp_path / "dialogues.jsonl", 200)  # some 60 kB, raising.jsonl has 5
    monkeypatch.setattr(shipping, "MAX_MIB", 0.02)
    (line,) = shipping.ship(file, there)
    assert line.startswith(f"data.source.path = '{tmp_path}/dialogues.jsonl': ")
    assert "at this path on every machine" in line
    assert [p.name for p in there.glob("files/*/*")] == ["raising.jsonl"]
    monkeypatch.chdir(tmp_path)
    file.write_text(file.read_text().replace(f"{tmp_path}/dialogues", "dialogues"))
    with pytest.raises(ValueError, match=r"data\.source\.path = 'dialogues\.jsonl'.*not shipped.*path from /"):
        shipping.ship(file, there)


def test_a_model_is_not_shipped(tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tiny_file(tmp_path)
    text = file.read_text()
    rest = text[: text.index("[students.tiny]")] + "{}" + text[text.index("[train]") :]
    rest = rest.replace("{ ", "{{ ").replace(" }", " }}")
    (tmp_path / "m").mkdir()
    file.write_text(rest.format(f'[students.tiny]\nmodel = "{tmp_path}/m"\n'))
    (line,) = shipping.ship(file, there)
    assert line.startswith(f"students.tiny.model = '{tmp_path}/m': a model is not shipped; it must be at this path on")
    file.write_text(rest.format('[students.tiny]\nmodel = "m"\n'))
    with pytest.raises(ValueError, match=r"students\.tiny\.model = 'm': a model is.*is relative"):
        shipping.ship(file, there)


def test_a_path_that_stands_elsewhere_in_the_file_too_is_refused(tmp_path: Path, there: Path) -> None:
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace('"Does it run?"', f'"{tmp_path}/dialogues.jsonl"'))
    with pytest.raises(ValueError, match="cannot be replaced in the file"):
        shipping.ship(file, there)
