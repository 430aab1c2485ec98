"""The dialogues of an experiment, looked at before (or after) their stage is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from empathy.prompts import rendered
from empathy.records import Dialogue
from empathy.sources import parse
from empathy.sources.clean import Bad
from empathy.sources.reader import Reader
from empathy.specs import DialoguesSpec
from empathy.stages import Stage
from empathy.store import Store

MOST_READ = 5_000
"""A source of more rows than this is not read to plan; the first ones tell how long its texts are."""
SAMPLE = 256


@dataclass(frozen=True)
class Corpus:
    """`sides`: dialogues by side of the split, None while unknown. `some` are dialogues to look at: all of them when
    `whole`. `at_most`: some may still be dropped."""

    sides: Mapping[str, int] | None
    some: tuple[Dialogue, ...]
    whole: bool
    at_most: bool = False
    _said: dict[str, float] = field(default_factory=dict)

    def count(self, side: str | None = None) -> int | None:
        """Dialogues on a side, or on all of them."""
        if self.sides is None:
            return None
        return self.sides.get(side, 0) if side else sum(self.sides.values())

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
    """From the store when the stage is made, else from the source itself as far as that is quick."""
    spec = stage.spec
    assert isinstance(spec, DialoguesSpec)
    artifact = store.find("dialogues", stage.key)
    if artifact is not None:
        whole = artifact.rows <= MOST_READ
        part = None if whole else 0
        return Corpus(artifact.meta["sides"], tuple(artifact.read(Dialogue, part)), whole)
    source = parse({"type": spec.source, **spec.options, **stage.locator})
    sides: dict[str, int] | None = {spec.only: spec.limit} if spec.only and spec.limit else None
    first = list(islice(source.rows(), SAMPLE if sides else MOST_READ + 1))
    if not sides and len(first) <= MOST_READ:
        kept = tuple(Reader(spec, source, None).sampled())
        return Corpus(Counter(d.split for d in kept), kept, not stage.inputs, at_most=bool(stage.inputs))
    some = tuple(d for d in first[:SAMPLE] if not isinstance(d, Bad))
    return Corpus(sides, some, whole=False, at_most=True)


def mean(numbers: Iterable[float]) -> float:
    """0.0 of none."""
    values = list(numbers)
    return sum(values) / len(values) if values else 0.0
