"""Small JSON records of the ledger's folder, read as what they were written as."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from empathy.artifact import CorruptError
from empathy.files import Files

T = TypeVar("T")
_READERS: dict[type, TypeAdapter[Any]] = {}
"""Making one takes a millisecond, reading with it microseconds."""


def parsed(cls: type[T], data: bytes, files: Files, path: str, remedy: str) -> T:
    """The record of a file. Raises CorruptError, naming the file and the remedy, for what is none."""
    try:
        if cls not in _READERS:
            _READERS[cls] = TypeAdapter(cls)
        record: T = _READERS[cls].validate_json(data)
    except ValidationError as error:
        raise CorruptError(f"{files.url}/{path} is damaged: {remedy}") from error
    return record
