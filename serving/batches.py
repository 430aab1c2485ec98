"""Provider batch APIs as another way to fill the ledger: half the price, an answer within a day.

Requests are gathered by (provider, model), claimed in the batch's own name, uploaded, created, polled, and their
results recorded like any other reply. Every step is noted in the store first (`serving.batch_notes`), so a process
may die at any moment: the next one takes the open batches up, and nobody asks their requests meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from empathy.files import Files
from empathy.requests import Answer, Request
from serving import batch_notes
from serving.batch_api import Batch, BatchApi, Lost, TooLarge
from serving.batch_basket import Basket, line_of, only
from serving.batch_breaker import Experience
from serving.batch_keeper import Entry, Keeper, unknown_batch
from serving.batch_purse import Purse
from serving.batch_results import Results, custom_ids
from serving.ledger import Asked, Ledger
from serving.providers import Batching, Provider, ProviderStopped
from serving.quota import Here, Quota, Route

ELSEWHERE, NO_ROOM, AGAIN = "elsewhere", "no room", "again"
"""Instead of a batch's id: somebody else asks for it; no more batches may be open; look again at once."""
LOOK_S = 5.0
"""How often it is looked whether what others asked for is there, and whether they left a batch behind."""
YOUNG_POLL_S = 1.0
"""Some batches end within seconds: so often a new one is looked at, up to `poll_s` as it grows older."""
LOST_AFTER = 3
"""So many 404s in a row: the provider has lost the batch."""
DOWNLOADS = 3
"""A result file with fewer lines than the batch counts is fetched so many times."""


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
        self._purse, self._poor = Purse(quota or Here()), False
        self._baskets: dict[Route, Basket] = {}
        self._open: dict[str, Entry] = {}
        self._where: dict[str, str] = {}
        self._elsewhere: set[str] = set()
        self._ended: set[str] = set()
        self._experience: dict[Route, Experience] = {}
        self._failures: Counter[str] = Counter()
        self._blamed: Counter[str] = Counter()
        self._looked_at = -1e9
        self.refused: dict[str, Answer] = {}
        """Requests that will not be answered; kept for this process alone, the ledger holds no errors."""
        self.fresh: set[str] = set()
        """Requests that were answered or refused in batches of ours."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Batches:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="empathy-batches-")))
        await self._stack.enter_async_context(self._purse)
        for name, provider in self._providers.items():
            self._apis[name] = await self._stack.enter_async_context(BatchApi(provider))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for basket in self._baskets.values():
            basket.sink.close()
        if self._open:
            self._tell(f"{len(self._open)} batches stay open at the provider; the next run waits for them")
        self._ledger.release(list(self._open))
        await self._stack.aclose()

    @property
    def open(self) -> int:
        """How many batches are waited for."""
        return len(self._open)

    # ---------------------------------------------------------------- asking

    def answer(self, request: Request) -> Answer | None:
        """What the ledger has, unless a model answered that is not accepted; or that it will not be answered."""
        found = self._ledger.get(request.key)
        if found is not None and not self._providers[request.provider].accepts(request.model, found.model_served):
            self._ledger.forget(request.key)
            self._learnt((request.provider, request.model)).doubted = True
            found = None
        return found or self.refused.get(request.key)

    async def want(self, request: Request) -> str:
        """Have it asked; the id of the batch to wait for, or ELSEWHERE, NO_ROOM, AGAIN."""
        key, route = request.key, (request.provider, request.model)
        if key in self._where or key in self._elsewhere:
            return self._where.get(key, ELSEWHERE)
        most_bytes = self._batching(request.provider).file_bytes
        try:
            line = line_of(request)
        except TypeError as error:  # a lone surrogate: no JSON can carry it
            return self._refuse(key, f"the request cannot be encoded: {error}")
        if len(line) > most_bytes:
            return self._refuse(key, f"the request has {len(line):,} bytes, a batch at most {most_bytes:,}")
        if self._poor:
            return NO_ROOM if self._open else ELSEWHERE
        usd = self._purse.most_usd(request, len(line), self._batching(request.provider).price)
        basket = self._baskets.get(route)
        if basket and (len(basket.keys) >= self._learnt(route).most or basket.size + len(line) > most_bytes):
            await self._submit(route)
            basket = None
        if basket is None:
            if not self._room(route):
                return NO_ROOM
            basket = self._new_basket(route)
        basket.add(key, line, usd)
        self._where[key] = basket.note.id
        return basket.note.id

    async def flush(self) -> None:
        """Send what is gathered, in batches that are not full."""
        for route in list(self._baskets):
            await self._submit(route)

    def _refuse(self, key: str, why: str) -> str:
        self.refused[key] = Answer("", "refused", refused=why)
        self.fresh.add(key)
        return AGAIN

    def _batching(self, provider: str) -> Batching:
        return self._providers[provider].batch or Batching()

    def _learnt(self, route: Route) -> Experience:
        if route not in self._experience:
            self._experience[route] = Experience(self._batching(route[0]).requests)
        return self._experience[route]

    def _room(self, route: Route) -> bool:
        routes = [*self._baskets, *(entry.route for entry in self._open.values())]
        learnt = self._learnt(route)
        if (learnt.full or learnt.doubted) and route in routes:
            return False
        return sum(provider == route[0] for provider, _ in routes) < self._batching(route[0]).at_once

    def _new_basket(self, route: Route) -> Basket:
        note = batch_notes.new_note(self._providers[route[0]], route[1], self._ledger.writer, self._ledger.experiment)
        path = self._folder / f"{note.id}.jsonl"
        self._baskets[route] = basket = Basket(note, path, open(path, "wb"))  # noqa: SIM115 (closed when it is sent)
        return basket

    # ---------------------------------------------------------------- making a batch

    async def _submit(self, route: Route) -> None:
        """Set money aside, claim, upload, create."""
        basket = self._baskets.pop(route)
        basket.sink.close()
        try:
            entry = await self._claimed(route, basket)
            if entry.keys:
                whole = len(entry.keys) == len(basket.keys)
                await self._send(entry, basket.path if whole else only(basket.path, set(entry.keys)))
        finally:
            basket.path.unlink(missing_ok=True)

    async def _claimed(self, route: Route, basket: Basket) -> Entry:
        """The batch with those requests of the basket that we can pay and nobody else asks."""
        paid = await self._purse.reserve(route, basket.usd)
        self._poor = paid < len(basket.keys)
        usd = dict(zip(basket.keys[:paid], basket.usd, strict=False))
        granted = self._keeper.claim(basket.note, list(usd)) if usd else set[str]()
        for key in basket.keys:
            if key not in granted:
                self._forget_place(key, basket.note.id)
                if key in usd:
                    self._elsewhere.add(key)
        keys = [key for key in usd if key in granted]
        entry = Entry(replace(basket.note, rows=len(keys)), keys, True, {k: usd[k] for k in keys})
        await self._purse.settle(route, 0.0, sum(usd.values()) - entry.reserved_usd)
        if usd and not keys:
            self._close(entry, "others ask for all of it")
        if not keys:
            self._ended.add(basket.note.id)
        return entry

    async def _send(self, entry: Entry, path: Path) -> None:
        """A batch that was surely not created is closed again, so that nobody waits for it."""
        try:
            await self._keeper.send(entry, path)
        except TooLarge as error:  # smaller files than the documentation says
            self._halve(entry, str(error))
            self._close(entry, f"too large: {error}")
            await self._purse.settle(entry.route, 0.0, entry.reserved_usd)
        except ProviderStopped:
            self._close(entry, "refused")
            await self._purse.settle(entry.route, 0.0, entry.reserved_usd)
            raise
        else:
            self._open[entry.note.id] = entry
            self._tell(
                f"batch {entry.note.batch} at {entry.route[0]}: {len(entry.keys):,} requests to {entry.route[1]}"
            )

    def _halve(self, entry: Entry, why: str) -> None:
        if len(entry.keys) == 1:
            self._refuse(entry.keys[0], f"too large for a batch of its own: {why}")
        self._learnt(entry.route).requests = max(1, len(entry.keys) // 2)

    def _forget_place(self, key: str, note_id: str) -> None:
        if self._where.get(key) == note_id:
            del self._where[key]

    def _close(self, entry: Entry, outcome: str) -> None:
        self._keeper.close(entry, outcome)
        for key in entry.keys:
            self._forget_place(key, entry.note.id)
        self._open.pop(entry.note.id, None)
        self._ended.add(entry.note.id)

    async def adopt(self) -> int:
        """Take up the open batches at our providers that no living process looks after. How many batches are open."""
        self._looked_at = time.monotonic()
        for note in batch_notes.open_notes(self._files):
            if note.provider not in self._providers or note.id in self._open:
                continue
            if (entry := await self._keeper.take_up(note.id)) is not None:
                self._open[note.id] = entry
                self._where |= dict.fromkeys(entry.keys, note.id)
                self._elsewhere.difference_update(entry.keys)
                self._tell(f"batch {entry.note.batch} at {note.provider}, of an earlier run: {note.rows:,} requests")
        return self.open

    # ---------------------------------------------------------------- waiting

    async def step(self) -> set[str]:
        """Wait a while. The ids of batches that ended since the last call, ELSEWHERE and NO_ROOM where that changed."""
        if not self._ended:
            await self._wait()
        ended, self._ended = self._ended, set()
        return ended | ({NO_ROOM} if ended - {ELSEWHERE} else set())

    async def _wait(self) -> None:
        looks_at = self._looked_at + LOOK_S
        wakes_at = min([looks_at, *(self._due_at(entry) for entry in self._open.values())])
        await asyncio.sleep(max(0.0, wakes_at - time.monotonic()))
        now = time.monotonic()
        if now >= looks_at:
            await self.adopt()
            self._elsewhere.clear()
            self._poor = self._poor and bool(self._open)
            self._ended.add(ELSEWHERE)
        for entry in list(self._open.values()):
            if now >= self._due_at(entry):
                await self._poll(entry)
                entry.polled_at = time.monotonic()

    def _due_at(self, entry: Entry) -> float:
        poll_s = self._batching(entry.note.provider).poll_s
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
            await self._collect(entry, batch)
        elif news := entry.news(batch):
            self._tell(news)

    async def _lost(self, entry: Entry, said: str) -> None:
        note = entry.note
        if (stop := unknown_batch(self._files, self._providers[note.provider], note)) is not None:
            raise stop
        self._tell(f"batch {note.batch} at {note.provider} is lost there ({said}); its requests are asked again")
        await self._finish(entry, Results(entry.keys, f"the provider lost batch {note.batch}"), "lost")

    # ---------------------------------------------------------------- results

    async def _collect(self, entry: Entry, batch: Batch) -> None:
        """Record whatever an ended batch answered, whichever way it ended."""
        self._keeper.check_ours(entry.note)
        provider, faults = self._providers[entry.note.provider], "; ".join(f.message for f in batch.faults[:3])
        why = f"batch {batch.id} {batch.status}{': ' + faults if faults else ''}"
        results = Results(entry.keys, why, expired=batch.status == "expired")
        for file, count in ((batch.output_file, batch.completed), (batch.error_file, batch.failed)):
            if file is not None:
                path = await self._fetched(entry, file, count)
                results.read(path, provider, entry.note.model, lambda k, a: self._record(entry, results, k, a))
                path.unlink(missing_ok=True)
        if batch.status == "failed" and entry.ours:
            results.blame(batch.faults, entry.keys)
        if any(f.code == "token_limit_exceeded" for f in batch.faults):
            self._back_off(entry, results)
        await self._finish(entry, results, batch.status)
        if entry.note.input_file:
            await self._apis[entry.note.provider].discard(entry.note.input_file)

    async def _fetched(self, entry: Entry, file: str, count: int) -> Path:
        path = self._folder / f"{entry.note.id}-results.jsonl"
        for attempt in range(1, DOWNLOADS + 1):
            try:
                await self._apis[entry.note.provider].download(file, path)
            except Lost:  # results are not kept for ever: what is gone is asked again
                path.write_bytes(b"")
            if (rows := len(set(custom_ids(path)))) >= count:  # lines may come twice
                break
            self._tell(f"result file {file} of batch {entry.note.batch}: {rows:,} of {count:,} rows ({attempt})")
        return path

    def _record(self, entry: Entry, results: Results, key: str, answer: Answer) -> None:
        price, tries = self._batching(entry.note.provider).price, 1 + self._failures.get(key, 0)
        results.paid_usd += self._purse.cost_usd(entry.route, answer, price, entry.usd.get(key, 0.0))
        told = replace(answer, attempts=tries) if tries > 1 else answer
        self._ledger.record(Asked(key, *entry.route), told, entry.note.experiment, price)

    def _back_off(self, entry: Entry, results: Results) -> None:
        """The provider's queue for this model is full: no fault of the rows. Alone in it, the batch is too large."""
        others = any(other.route == entry.route for other in self._open.values() if other is not entry)
        self._learnt(entry.route).full = others
        results.blameless = others or len(entry.keys) > 1
        if not others:
            self._learnt(entry.route).requests = max(1, len(entry.keys) // 2)
            self._tell(f"{entry.route[0]} has no room for {len(entry.keys):,} requests at once: smaller batches")

    async def _finish(self, entry: Entry, results: Results, outcome: str) -> None:
        """Every row's fate and the money, close the note, and stop where asking on would be in vain."""
        asks = self._batching(entry.note.provider).asks
        for key, why in results.failed():
            self._failures[key] += not results.blameless
            self._blamed[key] += results.blames(key)
            if self._blamed[key] >= asks:
                self._refuse(key, f"no answer in {asks} batches that answered others: {why}")
        self.refused |= results.refused
        if entry.ours:
            self.fresh.update(results.answered, results.refused)
        self._tell(f"batch {entry.note.batch} at {entry.note.provider} {outcome}: {results}")
        self._close(entry, outcome)
        await self._settle(entry, results, lost=outcome == "lost")
        self._poor = False
        experience = self._learnt(entry.route)
        experience.learn(results)
        experience.judge(self._providers[entry.note.provider], entry, results, outcome, asks)

    async def _settle(self, entry: Entry, results: Results, lost: bool) -> None:
        """What the batch cost; all that was set aside, where the provider has lost it and cannot say."""
        if entry.ours:
            paid = entry.reserved_usd if lost else results.paid_usd
            unknown = 0 if entry.reserved_usd else len(results.answered)
            await self._purse.settle(entry.route, paid, entry.reserved_usd - paid, unknown)
