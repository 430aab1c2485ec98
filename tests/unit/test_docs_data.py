"""docs/data.md is right: its example line is a dialogue, its tables name every field and every source, what it runs
runs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from empathy.records import Dialogue
from empathy.sources import AnySource
from empathy.sources.clean import clean
from empathy.sources.jsonl import _Row, read_jsonl
from jobs import cli
from tests.experiments import THINGS, TINY

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLE = json.loads(TEXT.partition("```json\n")[2].partition("```")[0])
EXPERIMENT = TEXT.partition("```toml\n")[2].partition("```")[0]


def test_the_example_line_is_a_dialogue_and_names_every_field(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(EXAMPLE) + "\n")
    (row,) = read_jsonl(tmp_path / "one.jsonl")
    assert isinstance(row, Dialogue)
    assert clean(row) == row
    assert set(EXAMPLE) == set(_Row.model_fields)


def test_the_tables_name_every_source_and_every_field() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    names = {name for line in lines for name in line.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    sources = {cls.model_fields["type"].default for cls in get_args(AnySource)}
    assert names == sources | set(_Row.model_fields)


def test_an_experiment_on_such_lines_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        EXAMPLE
        | {"id": f"d{i}", "group": f"g{i % 6}", "ratings": {"human": i % 3 + 1, "model-a": 3}}
        | {"turns": [{"role": "user", "content": f"{THINGS[i % 6]}, and that was {i} weeks ago."}]}
        for i in range(24)
    ]
    path = tmp_path / "dialogues.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, arms = (part for part in EXPERIMENT.replace('"dialogues.jsonl"', f'"{path}"').split("\n\n"))
    assert tomllib.loads(EXPERIMENT)["arms"] == [{"method": "direct", "teacher": "model-a"}]
    before, _, after = TINY.format(path=path, raising=path).partition("[data]\n")
    after = after.partition("[teacher]")[2].replace('[[arms]]\nmethod = "direct"\n', arms)
    file = tmp_path / "mine.toml"
    file.write_text(f"{before}{data}\n[teacher]{after}")
    assert cli.main(["plan", str(file), "--store", str(tmp_path / "store")]) == 0
    assert "2 trained students" in capsys.readouterr().out
