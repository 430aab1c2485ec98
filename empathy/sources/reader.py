"""Reads a source as a dialogues spec wants it: cleaned, on its side of the split, sampled, what is unwanted counted."""

from __future__ import annotations

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from empathy.records import HUMAN, Dialogue
from empathy.sources import AnySource
from empathy.sources.clean import Bad, clean
from empathy.specs import DialoguesSpec, PaperSplit
from empathy.splits import draw, side
from empathy.twins import Excluded, Held
from empathy.words import counted

if TYPE_CHECKING:
    import numpy as np

MAX_BAD = 0.01
"""Share of a source's rows that may be no dialogues before the stage fails."""


class Faults:
    """Rows that are no dialogues, among all that were read."""

    def __init__(self) -> None:
        self.seen = self._rows = 0
        self._told: list[Bad] = []

    def note(self, row: Dialogue | Bad) -> None:
        if not isinstance(row, Bad):
            self.seen += 1
            return
        self.seen += row.rows
        self._rows += row.rows
        if len(self._told) < 5 and (row.reason, row.detail) not in ((b.reason, b.detail) for b in self._told):
            self._told.append(row)  # one of each fault: a field that is misspelt is so in every row

    def check(self, source: str) -> None:
        """Raises ValueError for more of them than `MAX_BAD`."""
        if self._rows > MAX_BAD * self.seen:
            raise ValueError(
                f"data.source = {source!r}: {self._rows:,} of {self.seen:,} rows are no dialogues, more than "
                f"{MAX_BAD:.0%}; mend or remove them, for example: {'; '.join(map(str, self._told))}"
            )


class Reader:
    """Passes over a source, with their counts."""

    def __init__(self, spec: DialoguesSpec, source: AnySource, excluded: Excluded | None):
        self.spec, self.source = spec, source
        self._excluded, self._held = excluded, Held.of()
        if spec.only is None:  # both sides are here: what is tested must not be learned from
            self._held = Held.of(d for d in self.selected() if d.split == "test")

    def _reset(self) -> None:
        self._faults = Faults()
        self.dropped: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._ids = array("Q")
        self._leaked: list[str] = []
        self._leaks = 0

    def take_drops(self) -> Counter[str]:
        """Drops since the last call: those of the part that is written now."""
        new = self.dropped - self._told
        self._told = self.dropped.copy()
        return new

    def sampled(self) -> Iterator[Dialogue]:
        """The `limit` dialogues of lowest rank: a sample that hangs on seed and ids, not on the order of rows."""
        limit = self.spec.limit
        if limit is None:
            yield from self.selected()
            return
        ranks = _sorted(array("Q", (self._rank(d) for d in self.selected())))
        last = int(ranks[min(limit, len(ranks)) - 1]) if len(ranks) else 0
        yield from (d for d in self.selected() if self._rank(d) <= last)

    def _rank(self, dialogue: Dialogue) -> int:
        return draw("limit", self.spec.seed, dialogue.id)

    def selected(self) -> Iterator[Dialogue]:
        """A pass: sound dialogues of the wanted side that are not excluded."""
        self._reset()
        for row in self.source.rows():
            checked = row if isinstance(row, Bad) else self._checked(row)
            self._faults.note(checked)
            if isinstance(checked, Bad):
                self.dropped[checked.reason] += 1
                continue
            self._ids.append(draw("id", checked.id))
            dialogue = dataclasses.replace(checked, split=side(self.spec.split, checked))
            if self.spec.only not in (None, dialogue.split):
                continue
            reason = self._unwanted(dialogue)
            if reason:
                self.dropped[reason] += 1
            else:
                yield dialogue

    def _checked(self, row: Dialogue) -> Dialogue | Bad:
        dialogue = clean(row)
        if isinstance(dialogue, Bad) or not isinstance(self.spec.split, PaperSplit):
            return dialogue
        unrated = {HUMAN, *self.source.responders} - dialogue.ratings.keys()
        if not unrated:
            return dialogue
        detail = f"its side hangs on the rating of {', '.join(sorted(unrated))}"
        return Bad("unrated", f"dialogue {dialogue.id!r}", detail)

    def _unwanted(self, dialogue: Dialogue) -> str | None:
        if dialogue.split != "test":
            if self._held.has_talk(dialogue.id):
                self._leaks += 1
                self._leaked += [dialogue.id] if self._leaks <= 5 else []
            if self._held.has_said(dialogue.turns):
                return "twin_of_test"
        return self._excluded.reason(dialogue) if self._excluded else None

    @property
    def seen(self) -> int:
        """Rows of the last pass."""
        return self._faults.seen

    def check(self) -> None:
        """Raises ValueError for too many bad rows, repeated ids, and conversations on both sides."""
        source = f"data.source = {self.spec.source!r}"
        self._faults.check(self.spec.source)
        twice = self._repeated()
        if twice:
            many = f"{counted(len(twice), 'id')} {'occurs' if len(twice) == 1 else 'occur'} more than once"
            raise ValueError(
                f"{source}: {many}, for example {', '.join(twice[:5])}; give each dialogue an id of its own"
            )
        if self._leaks:
            raise ValueError(
                f"{source}: test dialogues inside training: {self._leaks} training dialogues are turns "
                f"of tested conversations, for example {', '.join(self._leaked)}; keep a conversation's turns "
                'in one group and on one side (data.split = "random" does)'
            )

    def _repeated(self) -> list[str]:
        ordered = _sorted(self._ids)
        if not (ordered[1:] == ordered[:-1]).any():
            return []
        named = Counter(row.id.strip() for row in self.source.rows() if not isinstance(row, Bad))
        return sorted(name for name, n in named.items() if n > 1)


def _sorted(numbers: array[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    import numpy as np  # slow to load, and planning does not need it

    return np.sort(np.frombuffer(numbers, dtype=np.uint64))
