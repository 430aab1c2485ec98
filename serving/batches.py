"""Provider batch APIs as another way to fill the ledger: half the price, an answer within a day.

Requests are gathered and sent (`serving.batch_sender`), their batches polled here, and what these answer recorded like
any other reply (`serving.batch_collector`). Every step is noted in the store first (`serving.batch_notes`), so a
process may die at any moment: the next one takes the open batches up, and nobody asks their requests meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from empathy.files import Files
from empathy.requests import Answer, Request
from serving import batch_notes
from serving.batch_api import BatchApi, Lost
from serving.batch_collector import Collector
from serving.batch_keeper import Entry, Keeper, unknown_batch
from serving.batch_purse import Purse
from serving.batch_register import AGAIN, ELSEWHERE, NO_ROOM, Register
from serving.batch_results import Results
from serving.batch_sender import Sender
from serving.ledger import Ledger
from serving.providers import Provider
from serving.quota import Here, Quota

__all__ = ["AGAIN", "ELSEWHERE", "NO_ROOM", "Batches"]

LOOK_S = 5.0
"""How often it is looked whether what others asked for is there, and whether they left a batch behind."""
YOUNG_POLL_S = 1.0
"""Some batches end within seconds: so often a new one is looked at, up to `poll_s` as it grows older."""
LOST_AFTER = 3
"""So many 404s in a row: the provider has lost the batch."""


class Batches:
    """The open batches of a process. An async context manager; ledger calls block its event loop, which is its own.

    `want` a request, `flush`, and `step` until what you wait for is ended: then `answer` has it. `tell` gets lines
    for people. Raises ProviderStopped, ProviderDown, BudgetSpent, or OSError when the store fails: what was answered
    is kept, and batches that are open stay so.
    """

    def __init__(
        self,
        files: Files,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        tell: Callable[[str], None],
        quota: Quota | None = None,
    ):
        self._files, self._ledger, self._providers, self._tell = files, ledger, providers, tell
        self._apis: dict[str, BatchApi] = {}
        self._keeper = Keeper(files, ledger, providers, self._apis)
        self._register = Register(providers, self._keeper)
        self._purse = Purse(quota or Here())
        self._looked_at = -1e9
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Batches:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="empathy-batches-")))
        await self._stack.enter_async_context(self._purse)
        for name, provider in self._providers.items():
            self._apis[name] = await self._stack.enter_async_context(BatchApi(provider))
        common = self._keeper, self._purse, self._register, folder, self._tell
        self._sender = Sender(self._ledger, self._providers, *common)
        self._collector = Collector(self._ledger, self._providers, self._apis, *common)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._sender.close()
        if self.open:
            self._tell(f"{self.open} batches stay open at the provider; the next run waits for them")
        self._ledger.release(list(self._register.open))
        await self._stack.aclose()

    @property
    def open(self) -> int:
        """How many batches are waited for."""
        return len(self._register.open)

    @property
    def fresh(self) -> set[str]:
        """Requests that were answered or refused in batches of ours; who has counted one takes it out."""
        return self._register.fresh

    # ---------------------------------------------------------------- asking

    def answer(self, request: Request) -> Answer | None:
        """What the ledger has, unless a model answered that is not accepted; or that it will not be answered."""
        found = self._ledger.get(request.key)
        if found is not None and not self._providers[request.provider].accepts(request.model, found.model_served):
            self._ledger.forget(request.key)
            self._register.learnt((request.provider, request.model)).doubted = True
            found = None
        return found or self._register.refused.get(request.key)

    async def want(self, request: Request) -> str:
        """Have it asked; the id of the batch to wait for, or ELSEWHERE, NO_ROOM, AGAIN."""
        return await self._sender.want(request)

    async def flush(self) -> None:
        """Send what is gathered, in batches that are not full."""
        await self._sender.flush()

    async def adopt(self) -> int:
        """Take up the open batches at our providers that no living process looks after. How many batches are open."""
        self._looked_at = time.monotonic()
        for note in batch_notes.open_notes(self._files):
            if note.provider not in self._providers or note.id in self._register.open:
                continue
            if (entry := await self._keeper.take_up(note.id)) is not None:
                self._register.adopted(entry)
                self._tell(f"batch {entry.note.batch} at {note.provider}, of an earlier run: {note.rows:,} requests")
        return self.open

    # ---------------------------------------------------------------- waiting

    async def step(self) -> set[str]:
        """Wait a while. The ids of batches that ended since the last call, ELSEWHERE and NO_ROOM where that changed."""
        if not self._register.ended:
            await self._wait()
        ended, self._register.ended = self._register.ended, set()
        return ended | ({NO_ROOM} if ended - {ELSEWHERE} else set())

    async def _wait(self) -> None:
        register, looks_at = self._register, self._looked_at + LOOK_S
        wakes_at = min([looks_at, *(self._due_at(entry) for entry in register.open.values())])
        await asyncio.sleep(max(0.0, wakes_at - time.monotonic()))
        now = time.monotonic()
        if now >= looks_at:
            await self.adopt()
            register.elsewhere.clear()
            register.poor = register.poor and bool(register.open)
            register.ended.add(ELSEWHERE)
        for entry in list(register.open.values()):
            if now >= self._due_at(entry):
                await self._poll(entry)
                entry.polled_at = time.monotonic()

    def _due_at(self, entry: Entry) -> float:
        poll_s = self._register.batching(entry.note.provider).poll_s
        return entry.polled_at + min(poll_s, max(YOUNG_POLL_S, 0.1 * (entry.polled_at - entry.since)))

    async def _poll(self, entry: Entry) -> None:
        assert entry.note.batch
        try:
            batch = await self._apis[entry.note.provider].get(entry.note.batch)
        except Lost as lost:
            entry.missed += 1
            if entry.missed >= LOST_AFTER:
                await self._lost(entry, str(lost))
            return
        entry.missed = 0
        if batch.ended:
            await self._collector.collect(entry, batch)
        elif news := entry.news(batch):
            self._tell(news)

    async def _lost(self, entry: Entry, said: str) -> None:
        note = entry.note
        if (stop := unknown_batch(self._files, self._providers[note.provider], note)) is not None:
            raise stop
        self._tell(f"batch {note.batch} at {note.provider} is lost there ({said}); its requests are asked again")
        await self._collector.finish(entry, Results(entry.keys, f"the provider lost batch {note.batch}"), "lost")
