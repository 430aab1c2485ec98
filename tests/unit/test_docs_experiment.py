"""docs/experiment.md names every field of an experiment file, and its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from empathy import experiment
from empathy.experiment.students import Raise
from empathy.specs.training import Lora, Optimiser, RandomBase

TEXT = (Path(__file__).parents[2] / "docs" / "experiment.md").read_text()
TABLES = {
    "The top": experiment.Experiment,
    "`[data]`": experiment.Data,
    "`[teacher]`": experiment.Teacher,
    "`[students.NAME]`": experiment.StudentModel,
    "`[train]`": experiment.Train,
    "`[generate]`": experiment.Generate,
    "`[judge]`": experiment.Judging,
    "`[ratings]` and `[rubric]`": experiment.Ratings,
    "`[[arms]]`": experiment.Arms,
    "`[grid]`": experiment.Grid,
    "`[report]`": experiment.Report,
}
WORDS = {"none": (None, ()), "all": ((),), "the `[teacher]`": ((),), "the first": ((),), "those of `[data]`": (None,)}
"""Defaults that are told in words, and what they may be."""


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> dict[str, str]:
    """Default by field."""
    cells = [line.split("|")[1:3] for line in section(title).splitlines() if line.startswith("| `")]
    return {name.strip(" `"): default.strip() for name, default in cells}


@pytest.mark.parametrize("title", TABLES)
def test_every_field_is_there_with_its_default(title: str) -> None:
    model: type[BaseModel] = TABLES[title]
    fields = {f.alias or name: f for name, f in model.model_fields.items()}
    told = rows(title)
    if model is experiment.Experiment:  # its tables have sections of their own
        named = {name for heading in TABLES for name in re.findall(r"\[([a-z]+)[\].]", heading)}
        assert set(fields) == set(told) | named
    else:
        assert set(told) == set(fields)
    for name, default in told.items():
        assert right(default, fields[name]), f"{title}: {name} = {fields[name].default!r}, and not {default}"


def right(told: str, field: Any) -> bool:
    if told == "needed" or field.is_required():
        return told == "needed" and field.is_required()
    if told == "as below":
        return isinstance(field.default, BaseModel)
    if told in WORDS:
        return field.default in WORDS[told]
    value = tomllib.loads(f"x = {told.strip('`')}")["x"]
    if isinstance(value, dict):
        return type(field.default)(**value) == field.default
    return bool(value == (list(field.default) if isinstance(field.default, tuple) else field.default))


@pytest.mark.parametrize("model", [Lora, Optimiser, experiment.DpoOptimiser, RandomBase, Raise])
def test_the_fields_inside_a_field_are_named(model: type[BaseModel]) -> None:
    inside = section("`[train]`") + section("`[students.NAME]`")
    missing = [name for name in model.model_fields if name != "type" and not re.search(rf"[`{{ ]{name}[` ]", inside)]
    assert not missing
