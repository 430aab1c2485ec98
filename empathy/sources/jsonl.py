"""A user's own dialogues, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError
from pydantic_core import ErrorDetails

from empathy.records import Dialogue, Role, Split, Turn
from empathy.sources.clean import Bad
from empathy.sources.common import SourceConfig, find_path
from empathy.words import instead

MOST_FAULTS = 3
"""Faults of one line that are told."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Role
    content: str


class _Row(BaseModel):
    """One line of the file. Only id and turns are needed; the last turn is the speaker's."""

    model_config = ConfigDict(extra="forbid")
    id: str
    turns: list[_Turn] = Field(min_length=1)
    group: str | None = None
    split: Split = "train"
    situation: str | None = None
    emotion: str | None = None
    human_reply: str | None = None
    ratings: dict[str, StrictInt] = {}
    recorded: dict[str, str] = {}


class Jsonl(SourceConfig):
    """`path`: a file of lines like {"id", "turns": [{"role", "content"}], "group", "situation", "emotion",
    "human_reply", "ratings": {"human": 1-3}, "recorded": {MODEL: TEXT}, "split"}; all but id and turns may be left
    out.

    A dialogue without a group is a group of its own. `recorded_replies` names the models of "recorded". The
    official split is the field "split", train where it is left out.
    """

    splits: ClassVar[tuple[str, ...]] = ("random", "group", "official")

    type: Literal["jsonl"] = "jsonl"
    path: str
    recorded_replies: tuple[str, ...] = ()

    @property
    def responders(self) -> tuple[str, ...]:
        return self.recorded_replies

    def locate(self) -> Path:
        found = find_path(self.path, "a .jsonl file")
        if found.is_dir():
            raise ValueError(f"data.source.path = {self.path!r}: {found} is a folder; give a .jsonl file")
        return found

    def rows(self) -> Iterator[Dialogue | Bad]:
        return read_jsonl(self.locate())

    def has_valid(self) -> bool:
        """Only lines that have the word are parsed: a plan reads millions of them."""
        with open(self.locate(), encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = (_dialogue("", line) for line in stream if '"valid"' in line)
            return any(isinstance(row, Dialogue) and row.split == "valid" for row in rows)


def read_jsonl(path: Path) -> Iterator[Dialogue | Bad]:
    """The lines of a file as dialogues; blank lines are skipped."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _dialogue(f"{path.name} line {number}", line)


def _fault(item: ErrorDetails) -> str:
    """The field and what is wrong with it, without its value: what people said belongs into no log."""
    loc = item["loc"]
    field = ".".join(map(str, loc)) or "the line"
    if item["type"] == "missing":
        return f"{field} is missing"
    if item["type"] == "extra_forbidden":
        known = _Row if len(loc) == 1 else _Turn
        return f"{field}: no such field{instead(str(loc[-1]), known.model_fields)}"
    return f"{field}: {item['msg']}"


def _dialogue(where: str, line: str) -> Dialogue | Bad:
    try:
        row = _Row.model_validate(json.loads(line))
    except ValidationError as error:
        return Bad("wrong_fields", where, ", ".join(map(_fault, error.errors()[:MOST_FAULTS])))
    except (ValueError, RecursionError) as error:  # one corrupt line is dropped, not the file
        return Bad("unreadable_row", where, str(error))
    turns = tuple(Turn(t.role, t.content) for t in row.turns)
    return Dialogue(**row.model_dump(exclude={"turns", "group"}), group=row.group or row.id, turns=turns)
