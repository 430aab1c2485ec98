"""The dialogues stage: rows of a source, cleaned, split, sampled, and written in parts. Memory is bounded by a part
of rows and eight bytes a dialogue."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from empathy.records import GOOD, HUMAN, Dialogue, Split, Turn
from empathy.sources import AnySource, parse
from empathy.sources.common import Bad, clean, conversation_id, normalised
from empathy.specs import DialoguesSpec, GroupSplit, OfficialSplit, PaperSplit, RandomSplit
from empathy.stages import Stage, canonical

if TYPE_CHECKING:
    import numpy as np

    from empathy.store import Store, Writer

AnySplit = PaperSplit | RandomSplit | GroupSplit | OfficialSplit
MAX_BAD = 0.01
"""Share of a source's rows that may be no dialogues before the stage fails."""
MIN_WORDS = 4
"""Shorter texts ("hi", "hello there") occur twice by chance."""


def stage(
    source: AnySource,
    split: AnySplit,
    *,
    only: Split | None = None,
    limit: int | None = None,
    seed: int = 0,
    part_rows: int = 256,
    without: Stage | None = None,
    label: str = "",
) -> Stage:
    """The stage that makes these dialogues. Raises ValueError when the file is missing or the source cannot be
    split so."""
    source.check_split(split.type)
    spec = DialoguesSpec(
        source=source.type,
        digest=source.digest(),
        options=source.options(),
        split=split,
        only=only,
        limit=limit,
        seed=seed,
        part_rows=part_rows,
    )
    locator = {"path": str(source.locate())} if "path" in type(source).model_fields else {}
    return Stage(spec, {"without": without} if without else {}, locator, label or source.type)


def make(stage: Stage, store: Store, writer: Writer) -> None:
    """Write and commit. Part counts are dialogues by side and drops by reason; `meta` has `sides`, `dropped` and
    `rows_read`.

    Raises ValueError when the data changed since the stage was planned, when more than `MAX_BAD` of the rows are no
    dialogues, when ids occur twice, and when no dialogue is left.
    """
    spec = stage.spec
    assert isinstance(spec, DialoguesSpec)
    source = parse({"type": spec.source, **spec.options, **stage.locator})
    if source.digest() != spec.digest:
        raise ValueError(f"data.source at {source.locate()}: its content changed since this was planned; plan again")
    without = _Absent(store.get(stage.inputs["without"]).read(Dialogue)) if stage.inputs else None
    reader = _Reader(spec, source, without)
    sides: Counter[str] = Counter()
    for index, part in enumerate(_parts(reader.sampled(), spec.part_rows)):
        here = Counter(dialogue.split for dialogue in part)
        writer.write_records(index, part, Dialogue, here | reader.take_drops())
        sides += here
    reader.check()
    if not sides:
        raise ValueError(
            f"data.source = {spec.source!r}: no dialogue is left of {reader.seen:,} rows "
            f"({dict(reader.dropped) or 'it is empty'}); check the file, the split and what is excluded"
        )
    writer.commit({"sides": dict(sides), "dropped": dict(reader.dropped), "rows_read": reader.seen})


def _parts(dialogues: Iterator[Dialogue], rows: int) -> Iterator[list[Dialogue]]:
    while part := list(itertools.islice(dialogues, rows)):
        yield part


def side(split: AnySplit, dialogue: Dialogue) -> Split:
    """The side of the split this dialogue is on, whatever other dialogues there are."""
    if isinstance(split, PaperSplit):
        return "test" if sum(rating == GOOD for rating in dialogue.ratings.values()) < 2 else "train"
    if isinstance(split, OfficialSplit):
        return dialogue.split
    # Turns of one conversation stay together in a random split too: each contains the replies before it.
    unit = dialogue.group if isinstance(split, GroupSplit) else conversation_id(dialogue.id)
    position = draw("split", split.seed, unit) / 2**64
    if position < split.test_fraction:
        return "test"
    return "valid" if position < split.test_fraction + split.valid_fraction else "train"


def draw(*what: object) -> int:
    """A uniform integer below 2**64 that depends on `what` alone."""
    return int.from_bytes(hashlib.blake2b(canonical(what).encode(), digest_size=8).digest(), "big")


def fingerprint(text: str | None) -> int | None:
    """64 bits of the normalised text; None for a text too short to tell conversations apart."""
    words = normalised(text or "")
    return draw("text", words) if words.count(" ") + 1 >= MIN_WORDS else None


def twin_key(messages: Iterable[Turn]) -> int | None:
    """Equal for conversations that differ in typing only; None for one too short to tell. System messages do not
    count."""
    return fingerprint("\n".join(turn.content for turn in messages if turn.role != "system"))


class _Absent:
    """Dialogues that must not appear: by conversation, or by the same situation or first words."""

    def __init__(self, dialogues: Iterable[Dialogue]):
        self._ids: set[str] = set()
        self._texts: set[int | None] = set()
        for dialogue in dialogues:
            self._ids.add(conversation_id(dialogue.id))
            self._texts |= _texts(dialogue)

    def reason(self, dialogue: Dialogue) -> str | None:
        if conversation_id(dialogue.id) in self._ids:
            return "excluded_id"
        return None if self._texts.isdisjoint(_texts(dialogue)) else "excluded_text"


def _texts(dialogue: Dialogue) -> set[int | None]:
    first = next(t.content for t in dialogue.turns if t.role == "user")
    return {fingerprint(dialogue.situation), fingerprint(first)} - {None}


class _Reader:
    """Passes over a source, with their counts."""

    def __init__(self, spec: DialoguesSpec, source: AnySource, absent: _Absent | None):
        self.spec, self.source, self.absent = spec, source, absent
        self.tested: frozenset[int | None] = frozenset()
        self._reset()
        if spec.only is None:  # both sides are here: no training dialogue may be a test dialogue in other words
            self.tested = frozenset(twin_key(d.turns) for d in self.selected() if d.split == "test") - {None}

    def _reset(self) -> None:
        self.seen = self.bad_rows = 0
        self.bad: list[Bad] = []
        self.dropped: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._ids = array("Q")

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
            self.seen += checked.rows if isinstance(checked, Bad) else 1
            if isinstance(checked, Bad):
                self._note(checked)
                continue
            self._ids.append(draw("id", checked.id))
            dialogue = dataclasses.replace(checked, split=side(self.spec.split, checked))
            if self.spec.only not in (None, dialogue.split):
                continue
            reason = self._excluded(dialogue)
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
        return Bad(
            "unrated", f"dialogue {dialogue.id!r}", f"its side hangs on the rating of {', '.join(sorted(unrated))}"
        )

    def _excluded(self, dialogue: Dialogue) -> str | None:
        if dialogue.split != "test" and twin_key(dialogue.turns) in self.tested:
            return "twin_of_test"
        return self.absent.reason(dialogue) if self.absent else None

    def _note(self, bad: Bad) -> None:
        self.dropped[bad.reason] += 1
        self.bad_rows += bad.rows
        if len(self.bad) < 5:
            self.bad.append(bad)

    def check(self) -> None:
        """Raises ValueError for too many bad rows and for ids that occur twice."""
        source = f"data.source = {self.spec.source!r}"
        if self.bad_rows > MAX_BAD * self.seen:
            raise ValueError(
                f"{source}: {self.bad_rows:,} of {self.seen:,} rows are no dialogues, more than {MAX_BAD:.0%}; "
                f"mend or remove them, the first are: {'; '.join(map(str, self.bad))}"
            )
        twice = self._repeated()
        if twice:
            raise ValueError(
                f"{source}: {len(twice)} ids occur more than once, for example {', '.join(twice[:5])}; "
                "give each dialogue an id of its own"
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
