"""Records <-> Arrow tables, from the type hints of the record classes alone.

str, int, float, bool and Literal become their Arrow types, `X | None` a nullable X, `tuple[X, ...]` a list,
`dict[str, X]` a list of {key, value} structs sorted by key, a dataclass a struct. Both ways
go column by column: no dict a row is made.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

R = TypeVar("R")
BATCH_ROWS = 4096
_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _strip_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [h for h in typing.get_args(hint) if h is not type(None)]
    return hint


@cache
def _fields(cls: Any) -> dict[str, Any]:
    """Field name -> type hint, in the order of the constructor."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _arrow_type(hint: Any) -> pa.DataType:
    hint = _strip_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _SCALARS[type(args[0])]
    if origin is tuple:
        return pa.list_(_arrow_type(args[0]))
    if origin is dict:
        return pa.list_(pa.struct([("key", _arrow_type(args[0])), ("value", _arrow_type(args[1]))]))
    if dataclasses.is_dataclass(hint):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in _fields(typing.cast(Any, hint)).items()])
    return _SCALARS[hint]


@cache
def schema_of(cls: Any) -> pa.Schema:
    """The Arrow schema of a record class."""
    return pa.schema(
        [
            pa.field(name, _arrow_type(hint), nullable=_strip_none(hint) is not hint)
            for name, hint in _fields(cls).items()
        ]
    )


# ---------------------------------------------------------------- records -> arrays


def _array(values: list[Any], hint: Any) -> pa.Array:
    hint = _strip_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _list_array(values, _array([item for v in values if v is not None for item in v], args[0]))
    if origin is dict:
        pairs = [(k, v[k]) for v in values if v is not None for k in sorted(v)]
        columns = [_array([k for k, _ in pairs], args[0]), _array([v for _, v in pairs], args[1])]
        return _list_array(values, pa.StructArray.from_arrays(columns, ["key", "value"]))
    if dataclasses.is_dataclass(hint):
        names = _fields(typing.cast(Any, hint))
        # A None has None in every column; the mask tells it from a record of Nones.
        columns = [_array([getattr(v, name, None) for v in values], inner) for name, inner in names.items()]
        return pa.StructArray.from_arrays(columns, list(names), mask=_mask(values))
    return pa.array(values, _SCALARS[type(args[0])] if origin is Literal else _SCALARS[hint])


def _list_array(values: list[Any], items: pa.Array) -> pa.Array:
    lengths = (0 if v is None else len(v) for v in values)
    offsets = pa.array(accumulate(lengths, initial=0), pa.int32())
    return pa.ListArray.from_arrays(offsets, items, mask=_mask(values))


def _mask(values: list[Any]) -> pa.Array | None:
    return pa.array([v is None for v in values]) if None in values else None


def to_table(records: Iterable[Any], cls: type) -> pa.Table:
    """A table of `records`, which are instances of `cls`, in their order; of the right schema also without any.

    Raises ValueError naming record and field for what Arrow cannot hold: a lone surrogate, None where none is allowed.
    """
    rows, schema = list(records), schema_of(cls)
    columns = []
    for name, hint in _fields(cls).items():
        values = [getattr(row, name) for row in rows]
        try:
            columns.append(_array(values, hint))
        except UnicodeEncodeError:  # Arrow names neither the row nor the text
            raise ValueError(_not_unicode(values, f"{cls.__name__}.{name}")) from None
        if columns[-1].null_count and not schema.field(name).nullable:
            raise ValueError(f"{cls.__name__}.{name} = None in record {values.index(None)}: its type does not allow it")
    return pa.Table.from_arrays(columns, schema=schema)


def _not_unicode(values: list[Any], field: str) -> str:
    for k, value in enumerate(values):
        if text := _around_surrogate(value):
            return f"{field} of record {k} holds half a surrogate pair ({text!r}): drop this record or mend its text"
    raise AssertionError("Arrow found one")


def _around_surrogate(value: Any) -> str:
    """The neighbourhood of the first lone surrogate in nested `value`, or an empty string."""
    if isinstance(value, str):
        at = next((k for k, c in enumerate(value) if "\ud800" <= c <= "\udfff"), None)
        return "" if at is None else value[max(0, at - 10) : at + 10]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(_around_surrogate, inner)), "")


# ---------------------------------------------------------------- arrays -> records


def _values(array: pa.Array, hint: Any) -> list[Any]:
    hint = _strip_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = _values(array.flatten(), args[0])
        return [None if s is None else tuple(items[s]) for s in _slices(array)]
    if origin is dict:
        keys, items = (_values(column, arg) for column, arg in zip(array.flatten().flatten(), args, strict=True))
        return [None if s is None else dict(zip(keys[s], items[s], strict=True)) for s in _slices(array)]
    if dataclasses.is_dataclass(hint):
        record: Any = hint
        columns = {array.type.field(k).name: column for k, column in enumerate(array.flatten())}
        made = map(record, *(_values(columns[name], inner) for name, inner in _fields(record).items()))
        return [value if there else None for value, there in zip(made, array.is_valid().to_pylist(), strict=True)]
    values: list[Any] = array.to_pylist()
    return values


def _slices(array: pa.Array) -> list[slice | None]:
    """Where each list's items are in the flattened array; None for a missing list."""
    lengths = pc.list_value_length(array).to_pylist()
    spans = pairwise(accumulate((n or 0 for n in lengths), initial=0))
    return [None if n is None else slice(*span) for n, span in zip(lengths, spans, strict=True)]


def from_table(table: pa.Table, cls: type[R]) -> Iterator[R]:
    """The records of a table written by `to_table`, in order. Raises ValueError when its columns are not `cls`'s."""
    fields = _fields(typing.cast(Any, cls))
    if set(table.column_names) != set(fields):
        raise ValueError(f"a {cls.__name__} table has columns {list(fields)}, this one {table.column_names}")
    return (
        record
        for batch in table.to_batches(max_chunksize=BATCH_ROWS)
        for record in map(cls, *(_values(batch.column(name), hint) for name, hint in fields.items()))
    )
