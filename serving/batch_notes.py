"""What the store knows of batches at providers: one note each, so that no process needs to live while they are open.

    ledger/batches/open/ID.json     a batch that is being made or waited for; its requests are claimed in its name
    ledger/batches/closed/ID.json   one that ended, and how; whatever it answered is in the ledger

A note is written before anything is claimed for its batch, again with the id of the uploaded file before the batch is
created, and again with the batch's id. Whoever looks after it has claimed ID itself in the ledger, which ends with
that process; the next one takes the note up and finds a batch of which only the file's id was noted by that id.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import asdict, dataclass, replace

from empathy.artifact import CorruptError
from empathy.files import Files
from serving.providers import Provider
from serving.sound import parsed

OPEN, CLOSED = "ledger/batches/open", "ledger/batches/closed"
_PREFIX = "batch-"


@dataclass(frozen=True)
class Note:
    """A batch of requests to one model. `id` is 40 hex digits; `rows` 0 until its requests are chosen."""

    id: str
    provider: str
    base_url: str
    model: str
    key_mark: str | None
    """Tells whether the API key is still the same; 32 bits of a salted hash, from which no key can be guessed."""
    made_at: float
    keepers: tuple[str, ...]
    """Writers of the ledger who looked after it, in order: its replies are in their journals."""
    experiment: str = ""
    rows: int = 0
    input_file: str | None = None
    batch: str | None = None

    @property
    def holder(self) -> str:
        """The name in which its requests are claimed."""
        return _PREFIX + self.id


def new_note(provider: Provider, model: str, keeper: str, experiment: str) -> Note:
    """A note with an id of its own, not yet in the store."""
    ident = hashlib.sha1(uuid.uuid4().bytes, usedforsecurity=False).hexdigest()
    return Note(
        id=ident,
        provider=provider.name,
        base_url=provider.base_url,
        model=model,
        key_mark=key_mark(provider.key(), ident),
        made_at=time.time(),
        keepers=(keeper,),
        experiment=experiment,
    )


def key_mark(key: str | None, ident: str) -> str | None:
    return hashlib.sha256(f"{ident}/{key}".encode()).hexdigest()[:8] if key else None


@dataclass(frozen=True)
class _Kept:
    """What is needed of a closed note."""

    keepers: tuple[str, ...]


def is_batch(holder: str) -> bool:
    """Whether claims of this holder are a batch's."""
    return holder.startswith(_PREFIX)


def is_open(files: Files, holder: str) -> bool:
    """Whether replies to what `holder` (a batch) claimed may still come."""
    return files.exists(f"{OPEN}/{holder.removeprefix(_PREFIX)}.json")


def keepers(files: Files, holder: str) -> list[str] | None:
    """Whose journals hold the replies of a closed batch; None when its note was removed by hand, or is damaged."""
    path = f"{CLOSED}/{holder.removeprefix(_PREFIX)}.json"
    data = files.read_or_none(path)
    try:
        return None if data is None else list(parsed(_Kept, data, files, path, "delete it").keepers)
    except CorruptError:  # as if it had been removed: every journal is read
        return None


def save(files: Files, note: Note) -> None:
    """Write an open note. Only who holds the claim on its id does."""
    files.write(f"{OPEN}/{note.id}.json", json.dumps(asdict(note)).encode())


def close(files: Files, note: Note, outcome: str) -> None:
    """The batch has ended: nothing more comes of it. Its replies must be durable before."""
    closed = asdict(note) | {"outcome": outcome, "closed_at": time.time()}
    files.write(f"{CLOSED}/{note.id}.json", json.dumps(closed).encode())
    files.delete(f"{OPEN}/{note.id}.json")


def open_notes(files: Files) -> list[Note]:
    """All open batches of a store, oldest first."""
    found = (load(files, path.rpartition("/")[2].removesuffix(".json")) for path in files.list(OPEN))
    return sorted((note for note in found if note is not None), key=lambda note: note.made_at)


def load(files: Files, ident: str) -> Note | None:
    """An open note; None when it has been closed. Raises CorruptError for a damaged one: a batch may be open."""
    path = f"{OPEN}/{ident}.json"
    data = files.read_or_none(path)
    remedy = "put it back as it was, or give that batch up (its requests are paid again) by deleting it"
    return None if data is None else parsed(Note, data, files, path, remedy)


def adopted(note: Note, keeper: str) -> Note:
    """The note in another keeper's hands."""
    return replace(note, keepers=(*note.keepers, keeper))
