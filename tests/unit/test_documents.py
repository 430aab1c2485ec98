"""What a user reads when a file is wrong: the field, the value, the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from empathy import documents


class Circle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["circle"] = "circle"
    radius: float = Field(gt=0)


class Square(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["square"] = "square"
    side: float


class Drawing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    shape: Annotated[Circle | Square, Field(discriminator="type")]
    others: tuple[Circle, ...] = ()


def said(data: object) -> str:
    with pytest.raises(ValueError, match="drawing") as caught:
        documents.validate(Drawing, data, "drawing.toml")
    return str(caught.value)


def test_misspelt_field_names_the_right_one() -> None:
    message = said({"titel": "x", "title": "y", "shape": {"type": "circle", "radius": 1}})
    assert "titel = 'x'" in message
    assert "did you mean 'title'?" in message


def test_misspelt_field_inside_a_union() -> None:
    message = said({"title": "y", "shape": {"type": "square", "sid": 1, "side": 2}})
    assert "shape.square.sid = 1" in message
    assert "did you mean 'side'?" in message


def test_unknown_type_lists_the_types() -> None:
    message = said({"title": "y", "shape": {"type": "star"}})
    assert "'star'" in message
    assert "There are circle, square" in message


def test_value_out_of_range_and_missing_are_both_told() -> None:
    message = said({"shape": {"type": "circle", "radius": -2}})
    assert "title: is missing" in message
    assert "shape.circle.radius = -2" in message


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("")
    with pytest.raises(ValueError, match=r"does not exist; there are .*other\.toml"):
        documents.load(Drawing, tmp_path / "drawing.toml")


def test_a_folder_is_told_from_a_file_that_is_missing(tmp_path: Path) -> None:
    for name in ("other.toml", "pyproject.toml"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"is a folder; there are [^,]*other\.toml$"):
        documents.load(Drawing, tmp_path)


def test_a_file_of_another_kind_is_asked_about_once() -> None:
    message = said({"store": "x", "ray": {"address": "local"}, "engine": {}, "others": []})
    assert message == (
        "drawing.toml: is this the right file? store, ray, engine are no fields of drawing files, "
        "which have others, shape, title"
    )


def test_of_a_long_value_the_beginning_is_shown() -> None:
    message = said({"title": "y", "shape": {"type": "circle", "radius": 1}, "colours": ["red"] * 1000})
    assert "colours = ['red', 'red', " in message
    assert " ...: no such field" in message
    assert len(message) < 400


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "drawing.toml").write_text('title = "a\n')
    with pytest.raises(ValueError, match=r"not valid TOML.*line 1"):
        documents.load(Drawing, tmp_path / "drawing.toml")
