"""The dialogues stage: rows of a source, cleaned, split, sampled, and written in parts. Memory is bounded by a part
of rows, 16 bytes a dialogue (while ids are sorted, to find those that occur twice), and 16 a test dialogue."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from empathy.records import Dialogue, Split
from empathy.sources import AnySource, parse
from empathy.sources.reader import Reader
from empathy.specs import DialoguesSpec
from empathy.splits import AnySplit
from empathy.stages import Stage
from empathy.twins import Excluded

if TYPE_CHECKING:  # pyarrow is slow to load
    from empathy.store import Store, Writer


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

    Raises ValueError when the data changed since the stage was planned, when more than `sources.reader.MAX_BAD` of
    the rows are no dialogues, when ids occur twice, and when no dialogue is left.
    """
    spec = stage.spec
    assert isinstance(spec, DialoguesSpec)
    source = parse({"type": spec.source, **spec.options, **stage.locator})
    if source.digest() != spec.digest:
        raise ValueError(f"data.source at {source.locate()}: its content changed since this was planned; plan again")
    without = Excluded(store.get(stage.inputs["without"]).read(Dialogue)) if stage.inputs else None
    reader = Reader(spec, source, without)
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
    first = next(dialogues, None)
    while first is not None:
        part = [first, *itertools.islice(dialogues, rows - 1)]
        first = next(dialogues, None)  # read on before this part is written: what is dropped at the end is then counted
        yield part
