"""One batch from its note to its end, so that it is created once: `serving.batch_notes` says what is noted when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from empathy.files import Files
from serving import batch_notes
from serving.batch_api import Batch, BatchApi, Unsure
from serving.batch_notes import Note
from serving.ledger import Ledger
from serving.providers import Batching, Provider, ProviderDown, ProviderStopped
from serving.rates import Route

TELL_S = 60.0


@dataclass
class Entry:
    """A batch in our care. `keys` are in the order of its file; of one that was taken up, in no order."""

    note: Note
    keys: list[str]
    ours: bool
    """We made it: not taken up from a former run."""
    usd: dict[str, float] = field(default_factory=dict)
    """Set aside for each request; nothing for a batch of a former run, which paid for it."""
    missed: int = 0
    since: float = field(default_factory=time.monotonic)
    polled_at: float = -1e9
    _told: tuple[str, int] = ("", -1)
    _told_at: float = -1e9
    _first: tuple[float, int] | None = None

    @property
    def route(self) -> Route:
        return self.note.provider, self.note.model

    @property
    def reserved_usd(self) -> float:
        return sum(self.usd.values())

    def news(self, batch: Batch) -> str | None:
        """A line for people when something has changed: its status at once, its counts once a minute."""
        now, done = time.monotonic(), batch.completed + batch.failed
        self._first = self._first or (now, done)
        if (batch.status, done) == self._told or (now - self._told_at < TELL_S and batch.status == self._told[0]):
            return None
        self._told, self._told_at = (batch.status, done), now
        total = batch.total or self.note.rows
        left = _left(batch, total - done, now - self._first[0], done - self._first[1])
        return f"batch {batch.id} at {self.note.provider}: {batch.status}, {done:,} of {total:,}{left}"


class Keeper:
    """Makes batches, takes up those that others left, and closes them."""

    def __init__(self, files: Files, ledger: Ledger, providers: Mapping[str, Provider], apis: Mapping[str, BatchApi]):
        self._files, self._ledger, self._providers, self._apis = files, ledger, providers, apis

    def claim(self, note: Note, keys: list[str]) -> set[str]:
        """Those of `keys` that are the batch's now. Its note comes first: it is what keeps the claims alive."""
        mine = self._ledger.claim([note.id])
        assert mine, "nobody else knows this id"
        batch_notes.save(self._files, note)
        return self._ledger.claim(keys, note.holder)

    async def send(self, entry: Entry, path: Path) -> None:
        """Upload the file and create the batch. Raises TooLarge or ProviderStopped where there surely is none then."""
        api = self._apis[entry.note.provider]
        file = await api.upload(path, f"empathy-{entry.note.id}.jsonl")
        self._save(entry, replace(entry.note, input_file=file))
        batch = await self._create(entry, api, file)
        self._save(entry, replace(entry.note, batch=batch.id))

    async def _create(self, entry: Entry, api: BatchApi, file: str) -> Batch:
        """One batch, and one only: while it is not known whether there is one, it is looked for, not made again."""
        began, tries = time.monotonic(), 0
        while True:
            self.check_ours(entry.note)
            try:
                return await api.create(file, entry.note.id)
            except Unsure as unsure:
                reason, wait_s = str(unsure), unsure.after_s
            if (found := await self._find(api, file)) is not None:
                return found
            tries += 1
            if time.monotonic() - began > api.provider.patience_s:
                raise ProviderDown(
                    f"{api.provider.named}: no batch could be created in {tries} tries, the last one: {reason}"
                )
            await asyncio.sleep(wait_s or api.provider.backoff_s * 2 ** min(tries, 6))

    async def _find(self, api: BatchApi, file: str) -> Batch | None:
        """The batch made of a file. A list may lag behind: looked at until `settle_s` have passed."""
        settle_s = (api.provider.batch or Batching()).settle_s
        until = time.monotonic() + settle_s
        while (found := await self._listed(api, file)) is None and time.monotonic() < until:  # noqa: ASYNC110 (polls)
            await asyncio.sleep(settle_s / 5)
        return found

    async def _listed(self, api: BatchApi, file: str) -> Batch | None:
        """What goes wrong here must not read as "there is none"."""
        try:
            return await api.find(file)
        except ProviderStopped as stop:
            raise ConnectionError(f"it cannot be told whether a batch was created: {stop}") from stop

    async def take_up(self, note_id: str) -> Entry | None:
        """Look after an open batch from now on; None when somebody else does, or when there is none (any more)."""
        if not self._ledger.claim([note_id]):
            return None
        note = batch_notes.load(self._files, note_id)
        if note is None:  # its keeper ended it since
            self._ledger.release([note_id])
            return None
        check_place(self._files, self._providers[note.provider], note)
        keys = sorted(self._ledger.held_by(note.holder, note.keepers))
        entry = Entry(note, keys, ours=False)
        self._save(entry, batch_notes.adopted(note, self._ledger.writer))
        if note.batch is None and not await self._was_created(entry):
            self.close(entry, "never created")
            return None
        return entry

    async def _was_created(self, entry: Entry) -> bool:
        """Whether the process that noted the file got so far as to create the batch.

        If not, the file is deleted and then looked for once more: a creation that is still on its way comes to nothing.
        """
        api, file = self._apis[entry.note.provider], entry.note.input_file
        if file is None:
            return False
        found = await self._find(api, file)
        if found is None:
            await api.discard(file)
            found = await self._listed(api, file)
        if found is not None:
            self._save(entry, replace(entry.note, batch=found.id))
        return found is not None

    def close(self, entry: Entry, outcome: str) -> None:
        """Replies are durable, then the note is closed, then what is left of its claims is free."""
        self._ledger.flush()
        batch_notes.close(self._files, entry.note, outcome)
        self._ledger.end(entry.note.holder)
        self._ledger.release([entry.note.id])

    def check_ours(self, note: Note) -> None:
        """Raises OSError when others took us for dead and may have taken the batch up."""
        if not self._ledger.holds(note.id):
            self._ledger.renew()
        if not self._ledger.holds(note.id):
            raise ConnectionError(f"{self._files.url} was out of reach for too long; start again")

    def _save(self, entry: Entry, note: Note) -> None:
        self.check_ours(note)
        batch_notes.save(self._files, note)
        entry.note = note


def check_places(files: Files, providers: Mapping[str, Provider]) -> None:
    """Raises ValueError when a batch is open at another place than where its provider is now."""
    for note in batch_notes.open_notes(files):
        if note.provider in providers:
            check_place(files, providers[note.provider], note)


def check_place(files: Files, provider: Provider, note: Note) -> None:
    if provider.base_url.rstrip("/") != note.base_url.rstrip("/"):
        raise ValueError(
            f"[providers.{note.provider}] base_url = {provider.base_url!r}: a batch of {note.rows:,} requests is open "
            f"at {note.base_url}. Put that back until it has ended, or {_give_up(files, note)}"
        )


def unknown_batch(files: Files, provider: Provider, note: Note) -> ProviderStopped | None:
    """What to say of a batch that the provider does not know, if that is because another key made it."""
    if note.key_mark == batch_notes.key_mark(provider.key(), note.id):
        return None
    return ProviderStopped(
        f"{provider.named} does not know batch {note.batch} ({note.rows:,} requests), which was made with another key. "
        f"Put that key back into {provider.secret_named} until it has ended, or {_give_up(files, note)}"
    )


def _give_up(files: Files, note: Note) -> str:
    return f"give it up (its requests are paid again) by deleting {files.url}/{batch_notes.OPEN}/{note.id}.json"


def _left(batch: Batch, rows: int, seconds: float, done: int) -> str:
    """How long yet: by the pace of `done` rows in `seconds`, else by its deadline."""
    if done > 0:
        return f", about {_clock(seconds / done * rows)} yet"
    return f", {_clock(max(0.0, batch.expires_at - time.time()))} yet at most" if batch.expires_at else ""


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{max(1, minutes)} min"
