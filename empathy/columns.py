"""Records <-> Arrow tables, from the type hints of the record classes alone.

str, int, float, bool and Literal become their Arrow types, `X | None` a nullable X, `tuple[X, ...]` a list,
`dict[str, X]` a list of {key, value} structs sorted by key, a dataclass a struct.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Literal, TypeVar

import pyarrow as pa

R = TypeVar("R")
_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _strip_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [h for h in typing.get_args(hint) if h is not type(None)]
    return hint


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
        return pa.struct(list(schema_of(typing.cast(type, hint))))
    return _SCALARS[hint]


@cache
def schema_of(cls: type) -> pa.Schema:
    """The Arrow schema of a record class."""
    hints = typing.get_type_hints(cls)
    fields = ((f.name, hints[f.name]) for f in dataclasses.fields(cls))
    return pa.schema(
        [pa.field(name, _arrow_type(hint), nullable=_strip_none(hint) is not hint) for name, hint in fields]
    )


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return [{"key": k, "value": _encode(value[k])} for k in sorted(value)]
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


@cache
def _decoder(hint: Any) -> Callable[[Any], Any]:
    hint = _strip_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        item = _decoder(args[0])
        return lambda v: tuple(item(x) for x in v)
    if origin is dict:
        item = _decoder(args[1])
        return lambda v: {x["key"]: item(x["value"]) for x in v}
    if dataclasses.is_dataclass(hint):
        cls: Any = hint
        hints = typing.get_type_hints(cls)
        fields = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}
        return lambda v: cls(**{n: None if v[n] is None else d(v[n]) for n, d in fields.items()})
    return lambda v: v


def to_table(records: Iterable[Any], cls: type) -> pa.Table:
    """A table of `records`, which are instances of `cls`, in their order; of the right schema also without any.

    Raises ValueError naming the record and field that Arrow cannot hold: a lone surrogate, None where none is allowed.
    """
    rows, schema = [_encode(r) for r in records], schema_of(cls)
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:  # names neither: look for it
        raise ValueError(_not_unicode(rows, cls)) from None
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            row = next(k for k, r in enumerate(rows) if r[column.name] is None)
            raise ValueError(f"{cls.__name__} {row}: {column.name} = None, which its type {column.type} does not allow")
    return table


def _not_unicode(rows: list[dict[str, Any]], cls: type) -> str:
    for k, row in enumerate(rows):
        for name, value in row.items():
            if text := _lone_surrogate(value):
                return f"{cls.__name__} {k}: {name} holds half a surrogate pair ({text!r}): drop or mend this record"
    raise AssertionError("Arrow found one")


def _lone_surrogate(value: Any) -> str:
    """The neighbourhood of the first lone surrogate in nested `value`, or an empty string."""
    if isinstance(value, str):
        at = next((k for k, c in enumerate(value) if "\ud800" <= c <= "\udfff"), None)
        return "" if at is None else value[max(0, at - 10) : at + 10]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_lone_surrogate, inner)), "")


def from_table(table: pa.Table, cls: type[R]) -> Iterator[R]:
    """The records of a table written by `to_table`, in order. Raises ValueError when its columns are not `cls`'s."""
    names = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    if set(table.column_names) != set(names):
        raise ValueError(f"a {cls.__name__} table has columns {names}, this one {table.column_names}")
    decode = _decoder(typing.cast(Any, cls))
    return (decode(row) for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist())
