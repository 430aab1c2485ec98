"""`empathy run`: refusals before anything is spent, and what it says when there is nothing to make."""

from __future__ import annotations

from pathlib import Path

import pytest

from empathy import experiment
from empathy.lower import lower
from empathy.stages import walk
from empathy.store import Store
from jobs import cli
from tests.cluster import profile_file
from tests.experiments import tiny_file


def test_reports_that_cannot_be_written_are_told_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, profile = tiny_file(tmp_path), profile_file(tmp_path)
    profile.write_text(profile.read_text().replace(f"{tmp_path}/reports", f"{file}/reports"))
    words = ["run", str(file), "--on", str(profile), "--store", str(tmp_path / "store")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"reports = '{file}/reports'" in said
    assert "name another in the profile" in said
    assert not (tmp_path / "store").exists()
    assert cli.main([*words, "--until", "dialogues"]) == 0, "no page is drawn then"


def test_what_a_finished_stage_was_made_from_is_missed_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody deleted a folder, as a message about a damaged file told him; what stands on it is there."""
    file = tiny_file(tmp_path)
    store = Store.open(str(tmp_path / "store"))
    stages = walk([lower(experiment.load(file)).report])
    examples = next(stage for stage in stages if stage.kind == "examples" and "dialogues" in stage.inputs)
    store.writer(examples).commit()
    words = ["run", str(file), "--store", store.url, "--until", f"examples/{examples.key}"]
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    gone = [stage for stage in walk([examples]) if stage is not examples]
    assert f"{len(gone)} stages that it was made from are not" in said
    assert f"--until {gone[0].kind}/{gone[0].key}`" in said
    for stage in gone:
        store.writer(stage).commit()
    assert cli.main(words) == 0
    assert f"nothing to make: all stages are in {store.url}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "run"])
def test_replies_that_leave_a_prompt_no_room_are_told_before_anything_is_made(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine would say so when every student is trained."""
    file, profile = tiny_file(tmp_path), profile_file(tmp_path, "[engine]\nmax_model_len = 64\n")
    words = [command, str(file), "--on", str(profile), "--store", str(tmp_path / "store"), "--until", "dialogues"]
    text = file.read_text()
    file.write_text(text.replace("max_tokens = 16", "max_tokens = 64"))
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "generate.max_tokens = 64: leaves no prompt any room in max_model_len = 64" in said
    file.write_text(text.replace("max_tokens = 16", "max_tokens = 63"))
    assert cli.main(words) == 0


@pytest.mark.parametrize("url", ["s3:/bucket/prefix", "s3:bucket"])
def test_a_bucket_with_a_slash_too_few_is_no_folder(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "--store", url]) == 2
    assert f"store = '{url}': a bucket is written s3://bucket/prefix" in capsys.readouterr().err
