"""Records survive Arrow and parquet unchanged, or are refused by name."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from empathy import records
from empathy.columns import from_table, schema_of, to_table
from empathy.records import Dialogue, Reply, Turn, Verdict

TEXT = some.text(some.characters(exclude_categories=["Cs"]))  # all of Unicode but lone surrogates
INT = some.integers(-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Everything:
    text: str
    number: int
    real: float
    flag: bool
    choice: Literal["x", "y"]
    turn: Turn | None
    nested: tuple[tuple[int, ...], ...]
    turns: tuple[Turn, ...] | None
    table: dict[str, float]
    note: str | None = None


turns = some.builds(Turn, some.sampled_from(["user", "assistant"]), TEXT)
everything = some.builds(
    Everything,
    TEXT,
    INT,
    some.floats(allow_nan=False),
    some.booleans(),
    some.sampled_from(["x", "y"]),
    some.none() | turns,
    some.lists(some.lists(INT, max_size=3).map(tuple), max_size=3).map(tuple),
    some.none() | some.lists(turns, max_size=3).map(tuple),
    some.dictionaries(TEXT, some.floats(allow_nan=False), max_size=3),
    some.none() | TEXT,
)


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(buffer)


@settings(max_examples=150, deadline=None)
@given(some.lists(everything, max_size=6))
def test_records_survive(rows: list[Everything]) -> None:
    table = through_parquet(to_table(rows, Everything))
    assert list(from_table(table, Everything)) == rows
    assert list(from_table(table.slice(1, 3), Everything)) == rows[1:4]


@pytest.mark.parametrize(
    "text", ["\x00", "\u202e bidi", "e\u0301", "\u00e9", "\U0001f642", "a" * 10_000_000], ids=ascii
)
def test_odd_texts_are_kept_to_the_byte(text: str) -> None:
    (back,) = from_table(through_parquet(to_table([Reply("d", "m", text)], Reply)), Reply)
    assert back.text.encode() == text.encode()


def test_half_a_surrogate_pair_is_refused_by_name() -> None:
    bad = Dialogue("d2", "g", (Turn("user", "fine"), Turn("user", "I feel \ud83d so")))
    with pytest.raises(ValueError, match=r"Dialogue\.turns of record 1 .*ud83d.*drop this record"):
        to_table([Dialogue("d1", "g", ()), bad], Dialogue)
    with pytest.raises(ValueError, match=r"Dialogue\.recorded of record 0"):
        to_table([Dialogue("d1", "g", (), recorded={"\udc00": "x"})], Dialogue)


def test_none_is_refused_where_the_type_has_none() -> None:
    with pytest.raises(ValueError, match=r"Reply\.text = None in record 1"):
        to_table([Reply("d", "m", "a"), Reply("d", "m", None)], Reply)  # type: ignore[arg-type]


def test_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="a Verdict table has columns"):
        from_table(to_table([Reply("d", "m", "a")], Reply), Verdict)


@pytest.mark.parametrize(
    "cls",
    [
        records.Dialogue,
        records.Reply,
        records.Demonstration,
        records.Preference,
        records.Logprob,
        records.Verdict,
        records.Estimate,
    ],
)
def test_no_records_have_their_schema_too(cls: type) -> None:
    table = through_parquet(to_table([], cls))
    assert table.schema.equals(schema_of(cls))
    assert list(from_table(table, cls)) == []


def test_missing_tables_of_a_dialogue_are_not_empty_ones() -> None:
    with_none = Everything("", 0, 0.0, False, "x", None, (), None, {})
    with_empty = Everything("", 0, 0.0, False, "x", Turn("user", ""), (), (), {})
    assert list(from_table(to_table([with_none, with_empty], Everything), Everything)) == [with_none, with_empty]
