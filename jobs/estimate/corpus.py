"""The dialogues of an experiment, looked at before (or after) their stage is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice

from empathy.prompts import rendered
from empathy.records import Dialogue
from empathy.sources import parse
from empathy.sources.clean import Bad, clean
from empathy.sources.reader import Faults, Reader
from empathy.specs import DialoguesSpec
from empathy.specs.sides import Sides, rows_on
from empathy.splits import draw, side
from empathy.stages import Stage
from empathy.store import Store

MOST_READ = 5_000
"""A source of more rows than this is not read as its stage reads it, only counted; the first ones tell how long its
texts are."""
MOST_COUNTED = 50_000
"""A source of more rows than this is not counted to plan. 25,000 take 0.9 s of CPU."""
SAMPLE = 256


@dataclass(frozen=True)
class Corpus:
    """`sides`: dialogues by side of the split, None while unknown. `some` are dialogues to look at: all of them when
    `whole`. `most`: what all sides have together at most, where that much is known."""

    sides: Mapping[str, int] | None
    some: tuple[Dialogue, ...]
    whole: bool
    most: int | None = None
    _said: dict[str, float] = field(default_factory=dict)

    def count(self, sides: Sides = None) -> int | None:
        """Dialogues on a side, on several, or on all of them (several and all at most); None while unknown."""
        if self.sides is None:
            return None if isinstance(sides, str) else self.most
        return rows_on(sides, sum(self.sides.values()), self.sides)

    def on(self, side: str) -> list[Dialogue]:
        return [d for d in self.some if d.split == side]

    @cached_property
    def dialogue_chars(self) -> float:
        """Mean characters of a conversation as prompts show it."""
        return mean(len(rendered(d)) for d in self.some)

    def reply_chars(self, responder: str) -> float:
        """Mean characters of what a responder of the data said; 0 where it said nothing."""
        if responder not in self._said:
            self._said[responder] = mean(len(said) for d in self.some if (said := d.reply_of(responder)))
        return self._said[responder]


def look(stage: Stage, store: Store) -> Corpus:
    """From the store when the stage is made, else from the source itself as far as that is quick.

    Raises ValueError for rows that are no dialogues, where all are read, and of at most `MOST_READ` for all else that
    the stage would refuse: ids twice, test dialogues inside training."""
    spec = stage.spec
    assert isinstance(spec, DialoguesSpec)
    artifact = store.find("dialogues", stage.key)
    if artifact is not None:
        whole = artifact.rows <= MOST_READ
        part = None if whole else 0
        return Corpus(artifact.meta["sides"], tuple(artifact.read(Dialogue, part)), whole)
    source = parse({"type": spec.source, **spec.options, **stage.locator})
    if spec.only and spec.limit:
        return Corpus({spec.only: spec.limit}, _sound(islice(source.rows(), SAMPLE)), whole=False, most=spec.limit)
    rows = source.rows()
    first = list(islice(rows, MOST_READ + 1))
    if len(first) <= MOST_READ:
        reader = Reader(spec, source, None)
        kept = tuple(reader.sampled())
        reader.check()
        return Corpus(Counter(d.split for d in kept), kept, not stage.inputs)
    return Corpus(_counted(spec, chain(first, rows)), _sound(first[:SAMPLE]), whole=False, most=spec.limit)


def _sound(rows: Iterable[Dialogue | Bad]) -> tuple[Dialogue, ...]:
    return tuple(d for d in rows if not isinstance(d, Bad))


def _counted(spec: DialoguesSpec, rows: Iterator[Dialogue | Bad]) -> dict[str, int] | None:
    """Dialogues by side, before those that have a twin elsewhere are left out; None of too many rows."""
    found: list[tuple[int, str]] = []
    faults = Faults()
    for dialogue in map(_cleaned, islice(rows, MOST_COUNTED)):
        faults.note(dialogue)
        if isinstance(dialogue, Bad):
            continue
        on = side(spec.split, dialogue)
        if spec.only in (None, on):
            found.append((draw("limit", spec.seed, dialogue.id), on))  # as `Reader` samples
    if next(rows, None):
        return None
    faults.check(spec.source)
    return dict(Counter(on for _, on in sorted(found)[: spec.limit]))


def _cleaned(row: Dialogue | Bad) -> Dialogue | Bad:
    return row if isinstance(row, Bad) else clean(row)


def mean(numbers: Iterable[float]) -> float:
    """0.0 of none."""
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0
