"""EmpatheticDialogues (Rashkin et al. 2019): one csv an emotion with columns Dialog_ID, Type, Actor, Text."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, TextIO

from empathy.records import Dialogue, Split, Turn
from empathy.sources.clean import Bad
from empathy.sources.common import SourceConfig, find_path, read_csv

OFFICIAL = "official_split_reconstructed.json"
_COLUMNS = ("Dialog_ID", "Type", "Actor", "Text")
_ROLES: dict[str, Literal["user", "assistant"]] = {"speaker": "user", "listener": "assistant"}
_Row = tuple[str, dict[str, str]]


class EmpatheticDialogues(SourceConfig):
    """`path`: the .tar.xz of csv files, the folder it lies in, or the folder it was unpacked to.

    A dialogue is what was said up to a listener's turn, and that turn is the human reply. `exchanges` "first" takes
    the first one of a conversation, "all" every one: later ones get the id CONVERSATION#turnN. The group is the
    conversation. Official split: valid and test ids in official_split_reconstructed.json next to the data, the rest
    train.
    """

    splits: ClassVar[tuple[str, ...]] = ("random", "group", "official")

    type: Literal["empathetic_dialogues"] = "empathetic_dialogues"
    path: str
    exchanges: Literal["first", "all"] = "first"

    def locate(self) -> Path:
        found = find_path(self.path, "the folder empathetic_dialogues or its .tar.xz")
        if found.is_file():
            return found
        unpacked = [
            folder for folder in (found, *sorted(p for p in found.iterdir() if p.is_dir())) if any(folder.glob("*.csv"))
        ]
        archives = sorted(found.glob("*.tar.xz"))
        if not unpacked and len(archives) != 1:
            raise ValueError(
                f"data.source.path = {self.path!r}: {found} holds no csv files and {len(archives)} .tar.xz archives; "
                "give the archive itself or the folder it was unpacked to"
            )
        return unpacked[0] if unpacked else archives[0]

    def check_split(self, kind: str) -> None:
        super().check_split(kind)
        if kind == "official" and self._official_path() is None:
            raise ValueError(
                f"data.split = 'official': there is no {OFFICIAL} in or next to {self.locate()}; "
                "put it there, or choose random or group"
            )

    def files(self) -> list[Path]:
        place, official = self.locate(), self._official_path()
        return (sorted(place.glob("*.csv")) if place.is_dir() else [place]) + ([official] if official else [])

    def rows(self) -> Iterator[Dialogue | Bad]:
        sides = self._sides()
        for emotion, stream in _members(self.locate()):
            for conversation in _conversations(read_csv(stream, _COLUMNS, f"{emotion}.csv")):
                if isinstance(conversation, Bad):
                    yield conversation
                else:
                    yield from self._dialogues(emotion, conversation, sides)

    def _official_path(self) -> Path | None:
        place = self.locate()
        near = [place / OFFICIAL, place.parent / OFFICIAL]
        return next((p for p in near if p.is_file()), None)

    def _sides(self) -> dict[str, Split]:
        path = self._official_path()
        if path is None:
            return {}
        named: dict[Split, list[str]] = json.loads(path.read_text())
        return {ident: side for side, idents in named.items() for ident in idents}

    def _dialogues(self, emotion: str, rows: list[_Row], sides: dict[str, Split]) -> Iterator[Dialogue | Bad]:
        where, first = rows[0]
        ident = first["Dialog_ID"]
        strange = {r["Actor"] for _, r in rows if r["Type"] == "utterance"} - _ROLES.keys()
        if strange:
            yield Bad("role_order", where, f"actor {sorted(strange)[0]!r}")
            return
        turns = _turns(rows)
        replies = [k for k, turn in enumerate(turns) if turn.role == "assistant"]
        if not replies:
            yield Bad("no_listener_turn", where)
        for number, k in enumerate(replies if self.exchanges == "all" else replies[:1], start=1):
            yield Dialogue(
                id=ident if number == 1 else f"{ident}#turn{number}",
                group=ident,
                turns=tuple(turns[:k]),
                split=sides.get(ident, "train"),
                situation=next((r["Text"] for _, r in rows if r["Type"] == "situation"), None),
                emotion=emotion,
                human_reply=turns[k].content,
            )


def _members(place: Path) -> Iterator[tuple[str, TextIO]]:
    """(emotion, open csv) of each file, in the order of the archive: it is unpacked once, as it is read."""
    if place.is_dir():
        for path in sorted(place.glob("*.csv")):
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                yield path.stem, stream
        return
    with tarfile.open(place) as archive:
        for member in archive:
            raw = archive.extractfile(member)
            if raw is not None and member.name.endswith(".csv"):
                yield Path(member.name).stem, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")


def _conversations(rows: Iterator[_Row | Bad]) -> Iterator[list[_Row] | Bad]:
    """Rows that follow each other with one Dialog_ID. A bad row spoils the conversation it stands in, whose place
    it takes."""
    current = ""

    def conversation(row: _Row | Bad) -> str:
        nonlocal current
        current = current if isinstance(row, Bad) else row[1]["Dialog_ID"]
        return current

    for _, group in itertools.groupby(rows, conversation):
        run = list(group)
        bad = next((row for row in run if isinstance(row, Bad)), None)
        yield bad or [row for row in run if not isinstance(row, Bad)]


def _turns(rows: list[_Row]) -> list[Turn]:
    """Utterances as turns; what one actor says in a row is one turn of several lines."""
    said = [(_ROLES[r["Actor"]], r["Text"]) for _, r in rows if r["Type"] == "utterance"]
    runs = itertools.groupby(said, key=lambda turn: turn[0])
    return [Turn(role, "\n".join(text for _, text in run)) for role, run in runs]
