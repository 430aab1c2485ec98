"""docs/experiment.md and docs/cluster.md name every field of an experiment file and of a profile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.profile import Profile, ProviderPlace
from empathy import experiment
from empathy.experiment.students import Raise
from empathy.specs.training import Lora, Optimiser, RandomBase

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "experiment.md").read_text()
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
WORDS = {
    "none": (None, ()),
    "all": ((),),
    "the `[teacher]`": ((),),
    "the first": ((),),
    "those of `[data]`": (None,),
    "that of `[train]`": ((),),
}
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


def test_the_profiles_tables_name_every_field() -> None:
    lines = (DOCS / "cluster.md").read_text().partition("## A profile")[2].partition("\n## ")[0].splitlines()
    table = {line.split("|")[1].strip(" `"): line for line in lines if line.startswith("| ")}
    for name, field in Profile.model_fields.items():
        if isinstance(field.default, BaseModel):
            told = dict(re.findall(r"`([a-z0-9_]+)`(?: \(([^\s,:)]+))?", table[f"[{name}]"]))
            assert set(told) == set(type(field.default).model_fields), name
            for inner, default in told.items():
                value = getattr(field.default, inner)
                words = "5" if inner == "ray_above_rows" else "[what"  # "5 million", and a link that says it
                assert default in ("", words, str(value).lower(), f'"{value}"'), f"{name}.{inner} = {value}"
        elif not isinstance(field.default, dict):
            assert f'`{name}` ("{field.default}")' in table["top"]
    places = re.findall(r"`([a-z_]+)`", " ".join(line.split("|")[1] for line in lines if line.startswith("| `")))
    batches = (DOCS / "batches.md").read_text()
    missing = [n for n in ProviderPlace.model_fields if n not in [*places, "limits"] and f"| `{n}` |" not in batches]
    assert not missing
