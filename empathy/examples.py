"""The examples stage: dialogues and replies, joined by id, become what a student learns from or is measured on.

A part is the unit: part k concerns the same dialogues as part k of the inputs, is made from those alone and from the
little that must be `Known` of the whole set, and is the same whichever process makes it. Nothing is done row by row.
Memory is bounded by a part, 16 bytes a test dialogue, and 150 bytes a reply when near-duplicates are screened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from empathy import cases
from empathy.candidates import Choice
from empathy.example_records import demonstrations, preferences
from empathy.near import Sketches, near_duplicates, sketches
from empathy.screens import NEAR_DUPLICATE
from empathy.specs import ExamplesSpec, ImproveLlm
from empathy.stages import LastingError, Stage
from empathy.texts import draws
from empathy.twins import Held, Keys, reply_numbers, said_keys, talk_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from empathy.store import Store, Writer

    Array = NDArray[np.uint64]

THREADS = min(4, os.cpu_count() or 1)
"""Parts made at once: while one hashes its texts, which one thread of a process can, another goes through polars."""


@dataclass(frozen=True)
class Known:
    """What a part needs of the other parts: the test dialogues, the replies that an earlier dialogue has too, and the
    lot of the last dialogue that a random division gives to SFT."""

    held: Held = field(default_factory=Held.of)
    repeated: Keys = field(default_factory=Keys)
    last_lot: int = 0


@dataclass(frozen=True)
class Tally:
    """`rows` made of `candidates` (replies that the method selects), and why some of these gave none."""

    candidates: int = 0
    rows: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.candidates + other.candidates, self.rows + other.rows, self.drops + other.drops)


Step = Literal["tests", "lots", "replies", "write"]
Each = Callable[[Step, Known], Iterable[Any]]
"""Takes one step of an `Assembler` for every part, in this process or in many; what they return, in any order."""


def make(stage: Stage, store: Store, writer: Writer) -> None:
    """Write and commit. The artifact's `meta` holds `candidates` (replies that the method selects) and `dropped` by
    reason.

    Raises LastingError when more than `max_dropped` of the candidates are dropped, when no example is left (a held-out
    set of pairs may be empty: what is measured on it is then unknown), when a test dialogue is inside a training set,
    and when the method needs a rating that nobody gave.
    """
    here = Assembler(stage, store, writer)
    with ThreadPoolExecutor(THREADS) as threads:
        assemble(here, lambda step, known: threads.map(lambda part: here.take(step, part, known), range(here.parts)))


def assemble(assembler: Assembler, each: Each) -> None:
    """Look around as far as the spec asks for it, make every part, and commit. Raises as `make` does."""
    known = _known(assembler, each)
    total = sum(each("write", known), Tally())
    _check(assembler.spec, total)
    assembler.writer.commit({"candidates": total.candidates, "dropped": dict(total.drops)})


def why_none(stage: Stage, store: Store, part: int, dialogue_id: str) -> list[str]:
    """Why a set has no example of a dialogue of `part`: a reason a reply; none when the method does not select it."""
    here = Assembler(stage, store, store.writer(stage))
    known = _known(here, lambda step, known: (here.take(step, k, known) for k in range(here.parts)))
    rows = here.candidates(part, known).filter(pl.col("id") == dialogue_id)
    return rows["reason"].drop_nulls().to_list()


def _known(assembler: Assembler, each: Each) -> Known:
    spec, known = assembler.spec, Known()
    if spec.purpose == "train":
        talks, said = zip(*each("tests", known), strict=True)
        known = replace(known, held=Held(Keys(np.concatenate(talks)), Keys(np.concatenate(said))))
    if isinstance(spec.method, ImproveLlm) and spec.method.division == "random":
        lots = np.sort(np.concatenate(list(each("lots", known))))
        share = round(spec.method.sft_share * len(lots))
        known = replace(known, last_lot=int(lots[share - 1]) if share else 0)
    if NEAR_DUPLICATE in assembler.choice.screens:
        known = replace(known, repeated=near_duplicates(each("replies", known)))
    return known


class Assembler:
    """One examples stage, part by part."""

    def __init__(self, stage: Stage, store: Store, writer: Writer):
        assert isinstance(stage.spec, ExamplesSpec)
        self.spec, self.writer, self.choice = stage.spec, writer, Choice(stage.spec)
        self._inputs = {name: store.get(needed) for name, needed in stage.inputs.items()}
        self._first_numbers = list(accumulate((p.rows or 0 for p in self._inputs["dialogues"].parts), initial=0))

    @property
    def parts(self) -> int:
        return len(self._first_numbers) - 1

    @property
    def dialogues(self) -> int:
        """Of all sides."""
        return self._first_numbers[-1]

    def take(self, step: Step, part: int, known: Known) -> Any:
        """The step of that name."""
        steps: dict[Step, Callable[[int, Known], Any]] = {
            "tests": self.tests, "lots": self.lots, "replies": self.replies, "write": self.write
        }  # fmt: skip
        return steps[step](part, known)

    def tests(self, part: int, known: Known) -> tuple[Array, Array]:
        """Keys of the test dialogues: of their conversations, and of what was said."""
        rows = cases.columns(self._inputs["dialogues"], part, ("id", "split", "turns")).filter(
            pl.col("split") == "test"
        )
        return talk_keys(rows["id"]), said_keys(rows["turns"])

    def lots(self, part: int, known: Known) -> Array:
        """What the dialogues of the side draw for a random division."""
        rows = cases.columns(self._inputs["dialogues"], part, ("id", "split")).filter(
            pl.col("split") == self.spec.split
        )
        return self._lots(rows["id"])

    def replies(self, part: int, known: Known) -> Sketches:
        """Of the replies that would be learned if nothing were screened."""
        rows = self.candidates(part, known, screened=False)
        rows = rows.filter(pl.col("reason").is_null())
        return sketches(rows["learned"], reply_numbers(rows["number"], rows["sample"]))

    def write(self, part: int, known: Known) -> Tally:
        """Make one part and write it."""
        rows = self.candidates(part, known)
        kept = rows.filter(pl.col("reason").is_null())
        _refuse(known.held.leaks(kept.select("id", "turns").unique("id")))
        records = demonstrations if self.spec.objective == "sft" else preferences
        table = records(kept, self.choice.said, self.spec.system)
        drops = Counter(dict(sorted(rows["reason"].drop_nulls().value_counts().iter_rows())))
        self.writer.write_part(part, table, drops)
        return Tally(len(rows), table.num_rows, drops)

    def candidates(self, part: int, known: Known, screened: bool = True) -> pl.DataFrame:
        """The cases of a part that the method selects, with the `reason` why one gives no example; unless `screened`,
        without the screens and without what examples show."""
        rows = cases.read(self.spec, self._inputs, part, self._first_numbers[part], self.choice.needs, shown=screened)
        if "drawn_for_sft" in self.choice.needs:
            rows = rows.with_columns(pl.Series("drawn_for_sft", self._lots(rows["id"]) <= np.uint64(known.last_lot)))
        return self.choice.candidates(rows, self.choice.screens if screened else (), known.repeated)

    def _lots(self, ids: pl.Series) -> Array:
        assert isinstance(self.spec.method, ImproveLlm)
        return draws(f"division\0{self.spec.method.division_seed}", ids)


def _refuse(leaked: list[str]) -> None:
    if leaked:
        raise LastingError(
            f"test dialogues inside training: {len(leaked)} training dialogues are also on the test side, for example "
            f'{", ".join(leaked[:5])}; split by group (data.split = "group") or remove the repetitions from the data'
        )


def _check(spec: ExamplesSpec, total: Tally) -> None:
    dropped = total.drops.total()
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(total.drops.items())) or "none dropped"
    what = f"{spec.objective} examples of method {spec.method.type!r} ({spec.split}, {spec.purpose})"
    if dropped > spec.max_dropped * total.candidates:
        raise LastingError(
            f"max_dropped = {spec.max_dropped}: {dropped} of {total.candidates} {what} were dropped ({reasons}); "
            "look at the replies, choose other screens, or raise data.max_dropped"
        )
    if not total.rows and (spec.purpose, spec.objective) != ("heldout", "dpo"):
        raise LastingError(
            f"no {what}: the method selects {total.candidates} dialogues ({reasons}); "
            "check the split, the ratings, and that the replies are of the same dialogues"
        )
