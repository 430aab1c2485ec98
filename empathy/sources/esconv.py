"""ESConv (Liu et al. 2021): emotional-support conversations, one JSON object a line in train.txt, valid.txt and
test.txt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from empathy.records import Dialogue, Split, Turn
from empathy.sources.clean import Bad
from empathy.sources.common import SourceConfig, find_path

_SIDES: tuple[Split, ...] = ("train", "valid", "test")
_ROLES: dict[str, Literal["user", "assistant"]] = {"usr": "user", "sys": "assistant"}


class Esconv(SourceConfig):
    """`path`: the folder with the three files, which are the official split.

    A dialogue is what was said up to a supporter's turn that follows a seeker's; a greeting by the supporter before
    the seeker has spoken is left out. `min_turns` counts the turns before the reply; `max_per_conversation` takes
    that many, evenly spaced. Ids are esconv-SIDE-LINE#turnN, the group is the conversation.
    """

    splits: ClassVar[tuple[str, ...]] = ("random", "group", "official")

    type: Literal["esconv"] = "esconv"
    path: str
    max_per_conversation: int | None = Field(None, ge=1)
    min_turns: int = Field(1, ge=1)

    def locate(self) -> Path:
        found = find_path(self.path, "the folder esconv with train.txt, valid.txt and test.txt")
        absent = [f"{side}.txt" for side in _SIDES if not (found / f"{side}.txt").is_file()]
        if absent:
            raise ValueError(
                f"data.source.path = {self.path!r}: no {', '.join(absent)} in {found}; give a folder with all three"
            )
        return found

    def files(self) -> list[Path]:
        return [self.locate() / f"{side}.txt" for side in _SIDES]

    def rows(self) -> Iterator[Dialogue | Bad]:
        for side, path in zip(_SIDES, self.files(), strict=True):
            with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                for number, line in enumerate(stream, start=1):
                    yield from self._dialogues(side, number, line)

    def _dialogues(self, side: Split, number: int, line: str) -> Iterator[Dialogue | Bad]:
        where = f"{side}.txt line {number}"
        try:
            raw: dict[str, Any] = json.loads(line)
            turns = _turns(raw["dialog"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:  # one corrupt line is dropped, not the file
            yield Bad("unreadable_row", where, repr(error))
            return
        group = f"esconv-{side}-{number}"
        for k in self._chosen([k for k, turn in enumerate(turns) if turn.role == "assistant" and k >= self.min_turns]):
            yield Dialogue(
                id=f"{group}#turn{(k + 1) // 2}",
                group=group,
                turns=tuple(turns[:k]),
                split=side,
                situation=raw.get("situation"),
                emotion=raw.get("emotion_type"),
                human_reply=turns[k].content,
            )

    def _chosen(self, places: list[int]) -> list[int]:
        most = self.max_per_conversation or len(places)
        if len(places) <= most:
            return places
        return [places[(2 * i + 1) * len(places) // (2 * most)] for i in range(most)]


def _turns(dialog: list[dict[str, str]]) -> list[Turn]:
    """From the seeker's first words on; what one side says in a row is one turn of several lines."""
    said = itertools.dropwhile(
        lambda t: t[0] == "assistant", ((_ROLES[t["speaker"]], t["text"].strip()) for t in dialog)
    )
    return [Turn(role, "\n".join(text for _, text in run)) for role, run in itertools.groupby(said, key=lambda t: t[0])]
