"""What every source shares: where its files are, what identifies them, and what a sound row is.

A source turns raw rows into dialogues, one at a time. A row that cannot be one becomes a `Bad` with a reason;
whoever reads the source counts them (`empathy.dialogues`).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TextIO

from empathy.records import BAD, GOOD, Dialogue, Turn
from empathy.specs import Part

MAX_TURN_CHARACTERS = 20_000
MAX_TURNS = 512
_SURROGATE = re.compile("[\ud800-\udfff]")
_LATER_TURN = re.compile(r"#turn\d+$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Bad:
    """A row that is no dialogue: `reason` is counted, `where` and `detail` are for people, `rows` is how many it
    may have cost."""

    reason: str
    where: str
    detail: str = ""
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


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


def conversation_id(dialogue_id: str) -> str:
    """The conversation a dialogue was cut from: ids of later turns end in "#turn2", "#turn3", ..."""
    return _LATER_TURN.sub("", dialogue_id)


def normalised(text: str) -> str:
    """Lower-case words without punctuation: equal for texts that differ in typing only."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


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


def clean(dialogue: Dialogue, where: str = "") -> Dialogue | Bad:
    """The dialogue in NFC with outer blanks and carriage returns removed, or why it cannot be used."""
    tidy = dataclasses.replace(
        dialogue,
        id=dialogue.id.strip(),
        turns=tuple(Turn(t.role, _tidy(t.content)) for t in dialogue.turns),
        situation=_tidy(dialogue.situation or "") or None,
        human_reply=_tidy(dialogue.human_reply or "") or None,
        recorded={name: text for name, raw in dialogue.recorded.items() if (text := _tidy(raw))},
    )
    reason = _fault(tidy)
    return Bad(reason, where or f"dialogue {tidy.id!r}") if reason else tidy


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def _fault(dialogue: Dialogue) -> str | None:
    texts = [t.content for t in dialogue.turns]
    others = [dialogue.id, dialogue.group, dialogue.situation, dialogue.emotion, dialogue.human_reply]
    everything = [*texts, *(t for t in others if t), *dialogue.recorded.values()]
    if not dialogue.id:
        return "no_id"
    if any(_SURROGATE.search(t) for t in everything):
        return "not_unicode"  # a lone surrogate; a byte that is not UTF-8 is read as one
    if any("\0" in t for t in everything):
        return "nul"
    if any(len(t) > MAX_TURN_CHARACTERS for t in everything):
        return "long_turn"
    if len(texts) > MAX_TURNS:
        return "many_turns"
    if not all(texts):
        return "empty_turn"
    if not _alternates([t.role for t in dialogue.turns]):
        return "role_order"
    if any(rating not in range(BAD, GOOD + 1) for rating in dialogue.ratings.values()):
        return "rating"
    return None


def _alternates(roles: list[str]) -> bool:
    """An optional system turn, then user and assistant in turn, from user to user."""
    chat = roles[1:] if roles[:1] == ["system"] else roles
    return len(chat) % 2 == 1 and chat == ["user", "assistant"] * (len(chat) // 2) + ["user"]
