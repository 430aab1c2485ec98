"""Welivita and Pu 2024, second study: 2,000 first exchanges of EmpatheticDialogues, five replies each, rated by
people 1-3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from empathy.records import HUMAN, Dialogue, Turn
from empathy.sources.clean import Bad
from empathy.sources.common import SourceConfig, find_path, read_csv

RESPONDERS = {
    "gpt-4": "chatgpt_empathy",
    "llama-2-70b-chat": "llama_empathy",
    "gemini-1.0-pro": "gemini_empathy",
    "mixtral-8x7b": "mixtral_empathy",
}
"""Responder -> the suffix of its columns in the file."""
_SUFFIX = {HUMAN: "human", **RESPONDERS}
_COLUMNS = (
    *("part_no", "dialog_id", "emotion", "situation", "speaker_uttr"),
    *(f"{what}_{suffix}" for what in ("response", "rating") for suffix in _SUFFIX.values()),
)
_RATINGS = {"1": 1, "2": 2, "3": 3}


class WelivitaPu(SourceConfig):
    """`path`: study2.csv or its folder. Groups are `part_no`; ids are EmpatheticDialogues' conversation ids."""

    splits: ClassVar[tuple[str, ...]] = ("paper", "random", "group")

    type: Literal["welivita_pu"] = "welivita_pu"
    path: str

    @property
    def responders(self) -> tuple[str, ...]:
        return tuple(RESPONDERS)

    def locate(self) -> Path:
        found = find_path(self.path, "the file welivita_pu/study2.csv")
        if not found.is_dir():
            return found
        if not (found / "study2.csv").is_file():
            raise ValueError(
                f"data.source.path = {self.path!r}: the folder {found} holds no study2.csv; give the csv file itself"
            )
        return found / "study2.csv"

    def rows(self) -> Iterator[Dialogue | Bad]:
        path = self.locate()
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            for row in read_csv(stream, _COLUMNS, path.name):
                yield row if isinstance(row, Bad) else _dialogue(*row)


def _dialogue(where: str, row: dict[str, str]) -> Dialogue | Bad:
    ratings = {name: row[f"rating_{suffix}"].strip() for name, suffix in _SUFFIX.items()}
    strange = [text for text in ratings.values() if text and text not in _RATINGS]
    if strange:
        return Bad("rating", where, f"{strange[0]!r} is not 1, 2 or 3")
    return Dialogue(
        id=row["dialog_id"],
        group=row["part_no"],
        turns=(Turn("user", row["speaker_uttr"]),),
        situation=row["situation"],
        emotion=row["emotion"],
        human_reply=row["response_human"],
        ratings={name: _RATINGS[text] for name, text in ratings.items() if text},
        recorded={name: row[f"response_{suffix}"] for name, suffix in RESPONDERS.items()},
    )
