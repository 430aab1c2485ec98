"""Requests on their way into a batch: a file of lines, and which of them may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from empathy.requests import Request
from serving.batch_api import ENDPOINT
from serving.batch_notes import Note


@dataclass
class Basket:
    """Requests that will be one batch."""

    note: Note
    path: Path
    sink: BinaryIO
    keys: list[str] = field(default_factory=list)
    usd: list[float] = field(default_factory=list)
    """What each request can cost at worst."""
    size: int = 0

    def add(self, key: str, line: bytes, usd: float) -> None:
        self.sink.write(line)
        self.keys.append(key)
        self.usd.append(usd)
        self.size += len(line)


def line_of(request: Request) -> bytes:
    """One line of a batch file. The key comes first: `only` relies on it."""
    line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": request.body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def only(path: Path, keys: set[str]) -> Path:
    """The file with the lines of `keys` alone."""
    begin, chosen = len(b'{"custom_id":"'), path.with_suffix(".some")
    with open(path, "rb") as lines, open(chosen, "wb") as sink:
        sink.writelines(line for line in lines if line[begin : begin + 40].decode() in keys)
    return chosen.replace(path)
