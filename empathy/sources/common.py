"""What every source shares: where its files are, and what identifies them.

A source turns raw rows into dialogues, one at a time. A row that cannot be one becomes a `Bad` with a reason;
whoever reads the source counts them (`empathy.sources.reader`).
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TextIO

from empathy.records import Dialogue
from empathy.sources.clean import Bad
from empathy.specs import Part


class SourceConfig(Part):
    """Base of the sources. Subclasses add `type`, their options, and `path` where they read a file of the user's.

    `splits` are the kinds of split that make sense here; under "official" the side is the one `rows` sets.
    """

    splits: ClassVar[tuple[str, ...]] = ("random", "group")

    def locate(self) -> Path:
        """The file or folder. Raises ValueError naming the field, the value and the remedy when it is not there."""
        raise AssertionError("a subclass knows")

    def check_split(self, kind: str) -> None:
        """Raises ValueError when the source cannot be split so."""
        if kind not in self.splits:
            name = type(self).model_fields["type"].default
            raise ValueError(
                f"data.split = {kind!r}: source {name!r} has none of that kind; choose one of {', '.join(self.splits)}"
            )

    def files(self) -> list[Path]:
        """The files whose content decides the rows."""
        return [self.locate()]

    def rows(self) -> Iterator[Dialogue | Bad]:
        """Dialogues as they stand in the data, not yet cleaned (`clean`), one at a time."""
        raise AssertionError("a subclass knows")

    def has_valid(self) -> bool:
        """Whether the source's official split has dialogues on the side `valid`."""
        return any(isinstance(row, Dialogue) and row.split == "valid" for row in self.rows())

    @property
    def responders(self) -> tuple[str, ...]:
        """Names of the models whose replies are recorded here ("human" is not listed)."""
        return ()

    def options(self) -> dict[str, Any]:
        """What decides the rows besides the files; JSON-able, without `type` and `path`."""
        return self.model_dump(mode="json", exclude={"type", "path"})

    def digest(self) -> str:
        """sha256 of the file's content; of several files, sha256 over the lines `SHA256  NAME` sorted by name."""
        files = self.files()
        sums = {file.name: _sha256(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files}
        if len(sums) == 1:
            return next(iter(sums.values()))
        return hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()).hexdigest()


@lru_cache
def _sha256(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_path(path: str, example: str) -> Path:
    """`path` with ~ and ${VARIABLES} expanded, absolute. Raises ValueError when a variable is unset or nothing is
    there."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise ValueError(
                f"data.source.path = {path!r}: the environment variable {name} is not set; "
                f"set it (export {name}=FOLDER) or give the path itself, for example {example}"
            )
        return os.environ[name]

    found = Path(re.sub(r"\$\{(\w+)\}", value, path)).expanduser().absolute()
    if not found.exists():
        raise ValueError(f"data.source.path = {path!r}: there is no {found}; give {example}")
    return found


def read_csv(stream: TextIO, columns: tuple[str, ...], name: str) -> Iterator[tuple[str, dict[str, str]] | Bad]:
    """(where, row) of each row, or Bad. Raises ValueError when a column is missing from the header."""
    reader = csv.reader(stream, strict=True)
    header = next(reader, [])
    absent = [c for c in columns if c not in header]
    if absent:
        raise ValueError(f"{name}: no column {', '.join(absent)}; its columns are {', '.join(header) or '(none)'}")
    while True:
        line = reader.line_num + 1
        where = f"{name} line {line}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # one unreadable row must not end the file; an open quote may have eaten many
            yield Bad("unreadable_row", where, str(error), rows=reader.line_num - line + 1)
            continue
        if not cells:
            continue
        if len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        else:
            yield Bad(
                "wrong_columns", where, f"{len(cells)} cells for {len(header)} columns", rows=reader.line_num - line + 1
            )
