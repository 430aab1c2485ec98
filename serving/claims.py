"""Who asks what: one totally ordered log of claims, so that two runs at once never ask the same.

`ledger/claims/0000000123.json` is put only if absent; who loses the race for a number reads the winner's record and
tries the next. Records: {"writer", "keys"} claims keys that nobody holds, {"writer", "released"} gives some back,
"dead" in a record voids all that the named writers hold. Who folds the records in order comes to the same owners as
everybody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from empathy.artifact import CorruptError
from empathy.files import Files
from serving.sound import parsed

FOLDER, SNAPSHOTS = "ledger/claims", "ledger/snapshots"
REMEDY = (
    f"put it back as it was; or, while no run is going on and ledger/batches/open is empty, delete {FOLDER} and "
    f"{SNAPSHOTS}: who asks what is then noted anew"
)
RECORDS_A_SNAPSHOT = 100


@dataclass(frozen=True)
class Record:
    """One file of the log."""

    writer: str
    keys: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The log before record `next`: unanswered keys by who held them."""

    next: int
    held: dict[str, tuple[str, ...]]


class Claims:
    """The fold of the log. `on_death(writer)` is called before what a dead writer held becomes free."""

    def __init__(self, files: Files, writer: str, on_death: Callable[[str], None]):
        self._files, self._writer, self._on_death = files, writer, on_death
        self._next = 1
        self._owners: dict[str, str] = {}
        self._held: dict[str, set[str]] = {}

    def owner(self, key: str) -> str | None:
        return self._owners.get(key)

    def held(self, writer: str) -> Collection[str]:
        """Keys that `writer` claimed and that are, as far as we know, not answered yet."""
        return self._held.get(writer, ())

    def holders(self) -> list[str]:
        return sorted(writer for writer, keys in self._held.items() if keys)

    def load(self) -> None:
        """Start from the newest snapshot, then read on. A damaged one is passed over: the log itself is whole."""
        for path in reversed(self._files.list(SNAPSHOTS)):
            try:
                newest = parsed(Snapshot, self._files.read(path), self._files, path, "delete it")
            except CorruptError:
                continue
            self._next = newest.next
            for writer, keys in newest.held.items():
                self._take(writer, keys)
            break
        self.refresh()

    def refresh(self) -> None:
        """Read what was added to the log. Raises CorruptError for a damaged record: it may hold claims."""
        while (data := self._files.read_or_none(self._path())) is not None:
            self._fold(parsed(Record, data, self._files, self._path(), REMEDY))

    def append(self, record: dict[str, Any]) -> bool:
        """Write `record` under the next number. False when somebody else's came first (it has been read then)."""
        record = {"writer": self._writer, **record}
        number = self._next
        if not self._files.put_if_absent(self._path(), json.dumps({**record, "number": number}).encode()):
            self.refresh()
            return False
        self._fold(Record(**record))
        return True

    @property
    def snapshot_due(self) -> bool:
        return self._next % RECORDS_A_SNAPSHOT == 0

    def snapshot(self) -> None:
        """Spare later readers the log so far. Only what is not answered needs to be in it."""
        held = {writer: sorted(keys) for writer, keys in self._held.items() if keys}
        data = json.dumps({"next": self._next, "held": held}).encode()
        self._files.put_if_absent(f"{SNAPSHOTS}/{self._next:010d}.json", data)

    def settle(self, key: str) -> None:
        """The reply is known: nobody needs to hold the key any more. May run beside the rest (single steps of dict and
        set)."""
        if owner := self._owners.pop(key, None):
            self._held[owner].discard(key)

    def _path(self) -> str:
        return f"{FOLDER}/{self._next:010d}.json"

    def _fold(self, record: Record) -> None:
        self._next += 1
        for writer in record.dead:
            self._on_death(writer)
            for key in list(self.held(writer)):
                self.settle(key)
        for key in record.released:
            if self._owners.get(key) == record.writer:
                self.settle(key)
        self._take(record.writer, record.keys)

    def _take(self, writer: str, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self._owners:
                self._owners[key] = writer
                self._held.setdefault(writer, set()).add(key)
