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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import orjson

from empathy.files import Files
from empathy.requests import Answer, Request
from serving import batch_notes
from serving.batch_api import ENDPOINT, Batch, BatchApi, Lost, TooLarge, Unsure
from serving.batch_notes import Note
from serving.batch_purse import Purse
from serving.batch_results import Results
from serving.ledger import Asked, Ledger
from serving.providers import Batching, Provider, ProviderDown, ProviderStopped
from serving.quota import Here, Quota

ELSEWHERE, NO_ROOM, AGAIN = "elsewhere", "no room", "again"
"""Instead of a batch's id: somebody else asks for it; no more batches may be open; look again at once."""
LOOK_S = 5.0
"""How often it is looked whether what others asked for is there, and whether they left a batch behind."""
TELL_S = 60.0
LOST_AFTER = 3
"""So many 404s in a row: the provider has lost the batch."""
BREAK_AFTER = 5
REFUSED_AT_FIRST = 20
DOWNLOADS = 3
"""A result file with fewer lines than the batch counts is fetched so many times."""
Lane = tuple[str, str]
"""(provider, model): a batch file is of one model."""


@dataclass
class _Basket:
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


@dataclass
class _Open:
    """A batch that is waited for. `keys` are in the order of its file; of one that was taken up, in no order."""

    note: Note
    keys: list[str]
    ours: bool
    usd: dict[str, float] = field(default_factory=dict)
    """Set aside for each request; nothing for a batch of an earlier run, which paid for it."""
    missed: int = 0
    since: float = field(default_factory=time.monotonic)
    polled_at: float = -1e9
    told_at: float = -1e9
    told: tuple[str, int] = ("", -1)
    first: tuple[float, int] | None = None


@dataclass
class _State:
    """What experience with one (provider, model) says."""

    requests: int
    barren: int = 0
    answered: int = 0
    full: bool = False
    """The provider takes no more until one of its batches ends."""


class Batches:
    """The open batches of a process. An async context manager; ledger calls block its event loop, which is its own.

    `want` a request, `flush`, and `step` until what you wait for is ended: then `answer` has it. `tell` gets lines
    for people.
    """

    def __init__(
        self,
        files: Files,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        tell: Callable[[str], None],
        quota: Quota | None = None,
    ):
        self._purse, self._poor = Purse(quota or Here()), False
        self._files, self._ledger, self._providers, self._tell = files, ledger, providers, tell
        self._apis: dict[str, BatchApi] = {}
        self._baskets: dict[Lane, _Basket] = {}
        self._open: dict[str, _Open] = {}
        self._where: dict[str, str] = {}
        self._elsewhere: set[str] = set()
        self._ended: set[str] = set()
        self._states: dict[Lane, _State] = {}
        self._failures: Counter[str] = Counter()
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
            found = None
        return found or self.refused.get(request.key)

    async def want(self, request: Request) -> str:
        """Have it asked; the id of the batch to wait for, or ELSEWHERE, NO_ROOM, AGAIN."""
        key, lane = request.key, (request.provider, request.model)
        if key in self._where or key in self._elsewhere:
            return self._where.get(key, ELSEWHERE)
        batching, state = self._batching(request.provider), self._state(lane)
        try:
            line = _line(request)
        except TypeError as error:  # a lone surrogate: no JSON can carry it
            return self._refuse(key, f"the request cannot be encoded: {error}")
        if len(line) > batching.file_bytes:
            return self._refuse(key, f"the request has {len(line):,} bytes, a batch at most {batching.file_bytes:,}")
        if self._poor:
            return NO_ROOM if self._open else ELSEWHERE
        usd = self._purse.most_usd(request, len(line), batching.price)
        basket = self._baskets.get(lane)
        if basket and (len(basket.keys) >= state.requests or basket.size + len(line) > batching.file_bytes):
            await self._submit(lane)
            basket = None
        if basket is None:
            if not self._room(lane):
                return NO_ROOM
            basket = self._new_basket(lane)
        basket.add(key, line, usd)
        self._where[key] = basket.note.id
        return basket.note.id

    async def flush(self) -> None:
        """Send what is gathered, in batches that are not full."""
        for lane in list(self._baskets):
            await self._submit(lane)

    def _refuse(self, key: str, why: str) -> str:
        self.refused[key] = Answer("", "refused", refused=why)
        self.fresh.add(key)
        return AGAIN

    def _batching(self, provider: str) -> Batching:
        return self._providers[provider].batch or Batching()

    def _state(self, lane: Lane) -> _State:
        if lane not in self._states:
            self._states[lane] = _State(self._batching(lane[0]).requests)
        return self._states[lane]

    def _room(self, lane: Lane) -> bool:
        lanes = [*self._baskets, *((o.note.provider, o.note.model) for o in self._open.values())]
        if self._state(lane).full and lane in lanes:
            return False
        return sum(provider == lane[0] for provider, _ in lanes) < self._batching(lane[0]).at_once

    def _new_basket(self, lane: Lane) -> _Basket:
        note = batch_notes.new_note(self._providers[lane[0]], lane[1], self._ledger.writer, self._ledger.experiment)
        path = self._folder / f"{note.id}.jsonl"
        self._baskets[lane] = basket = _Basket(note, path, open(path, "wb"))  # noqa: SIM115 (closed when it is sent)
        return basket

    # ---------------------------------------------------------------- making a batch

    async def _submit(self, lane: Lane) -> None:
        """Set money aside, claim, upload, create: each noted before the next."""
        basket = self._baskets.pop(lane)
        basket.sink.close()
        try:
            entry = await self._claimed(lane, basket)
            if entry.keys:
                whole = len(entry.keys) == len(basket.keys)
                await self._send(entry, basket.path if whole else _only(basket.path, set(entry.keys)))
        finally:
            basket.path.unlink(missing_ok=True)

    async def _claimed(self, lane: Lane, basket: _Basket) -> _Open:
        """The batch with those requests of the basket that we can pay and nobody else asks."""
        paid = await self._purse.reserve(lane, basket.usd)
        self._poor = paid < len(basket.keys)
        usd = dict(zip(basket.keys[:paid], basket.usd, strict=False))
        granted = self._claim(basket.note, list(usd)) if usd else set[str]()
        for key in basket.keys:
            if key not in granted:
                self._forget_place(key, basket.note.id)
                if key in usd:
                    self._elsewhere.add(key)
        keys = [key for key in usd if key in granted]
        note = replace(basket.note, rows=len(keys), usd=sum(usd[k] for k in keys))
        entry = _Open(note, keys, True, {k: usd[k] for k in keys})
        await self._purse.settle(lane, 0.0, sum(usd.values()) - sum(entry.usd.values()))
        if usd and not keys:
            self._close(entry, "others ask for all of it")
        self._ended |= set() if keys else {note.id}
        return entry

    def _claim(self, note: Note, keys: list[str]) -> set[str]:
        """Those of `keys` that are the batch's now. Its note comes first: it is what keeps the claims alive."""
        mine = self._ledger.claim([note.id])
        assert mine, "nobody else knows this id"
        batch_notes.save(self._files, note)
        return self._ledger.claim(keys, note.holder)

    async def _send(self, entry: _Open, path: Path) -> None:
        """A batch that was surely not created is closed again, so that nobody waits for it."""
        api, lane = self._apis[entry.note.provider], (entry.note.provider, entry.note.model)
        try:
            file = await api.upload(path, f"empathy-{entry.note.id}.jsonl")
            self._save(entry, replace(entry.note, input_file=file))
            batch = await self._create(entry)
        except TooLarge as error:
            self._split(entry, lane, str(error))
            await self._purse.settle(lane, 0.0, sum(entry.usd.values()))
            return
        except ProviderStopped:
            self._close(entry, "refused")
            await self._purse.settle(lane, 0.0, sum(entry.usd.values()))
            raise
        self._save(entry, replace(entry.note, batch=batch.id))
        self._open[entry.note.id] = entry
        self._tell(f"batch {batch.id} at {lane[0]}: {entry.note.rows:,} requests to {lane[1]}")

    def _split(self, entry: _Open, lane: Lane, why: str) -> None:
        """The provider wants smaller files than its documentation says."""
        if len(entry.keys) == 1:
            self._refuse(entry.keys[0], f"too large for a batch of its own: {why}")
        else:
            self._state(lane).requests = max(1, len(entry.keys) // 2)
        self._close(entry, f"too large: {why}")

    async def _create(self, entry: _Open) -> Batch:
        """One batch, and one only: while it is not known whether there is one, it is looked for, not made again."""
        api, began, tries = self._apis[entry.note.provider], time.monotonic(), 0
        assert entry.note.input_file
        while True:
            self._check_ours(entry.note)
            try:
                return await api.create(entry.note.input_file, entry.note.id)
            except Unsure as unsure:
                if (found := await self._find(entry.note)) is not None:
                    return found
                tries += 1
                if time.monotonic() - began > api.provider.patience_s:
                    raise ProviderDown(
                        f"{api.provider.named}: no batch could be created in {tries} tries, the last one: {unsure}"
                    ) from None
                await asyncio.sleep(unsure.after_s or api.provider.backoff_s * 2 ** min(tries, 6))

    async def _find(self, note: Note) -> Batch | None:
        """The batch made of a note's file. A list may lag behind: looked at until `settle_s` have passed."""
        api, settle_s = self._apis[note.provider], self._batching(note.provider).settle_s
        assert note.input_file
        until = time.monotonic() + settle_s
        while (found := await api.find(note.input_file)) is None and time.monotonic() < until:  # noqa: ASYNC110 (polls)
            await asyncio.sleep(settle_s / 5)
        return found

    def _check_ours(self, note: Note) -> None:
        """Raises OSError when others took us for dead and may have taken the batch up."""
        if not self._ledger.holds(note.id):
            self._ledger.renew()
        if not self._ledger.holds(note.id):
            raise ConnectionError(f"{self._files.url} was out of reach for too long; start again")

    def _save(self, entry: _Open, note: Note) -> None:
        self._check_ours(note)
        batch_notes.save(self._files, note)
        entry.note = note

    def _forget_place(self, key: str, note_id: str) -> None:
        if self._where.get(key) == note_id:
            del self._where[key]

    # ---------------------------------------------------------------- taking up what others left

    async def adopt(self) -> int:
        """Take up the open batches at our providers that no living process looks after. How many batches are open."""
        self._looked_at = time.monotonic()
        for note in batch_notes.open_notes(self._files):
            if note.provider in self._providers and note.id not in self._open and self._ledger.claim([note.id]):
                await self._adopt(note.id)
        return self.open

    async def _adopt(self, note_id: str) -> None:
        note = batch_notes.load(self._files, note_id)
        if note is None:  # its keeper ended it since
            self._ledger.release([note_id])
            return
        _check_place(self._files, self._providers[note.provider], note)
        entry = _Open(
            batch_notes.adopted(note, self._ledger.writer),
            sorted(self._ledger.held_by(note.holder, note.keepers)),
            False,
        )
        self._save(entry, entry.note)
        if note.input_file and not note.batch and (found := await self._find(note)):
            self._save(entry, replace(entry.note, batch=found.id))
        if entry.note.batch is None:
            self._close(entry, "never created")
            if note.input_file:
                await self._apis[note.provider].discard(note.input_file)
            return
        self._open[note.id] = entry
        self._where |= dict.fromkeys(entry.keys, note.id)
        self._elsewhere.difference_update(entry.keys)
        self._tell(f"batch {entry.note.batch} at {note.provider}, of an earlier run: {note.rows:,} requests")

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

    def _due_at(self, entry: _Open) -> float:
        """When to look at a batch again: soon while it is young, since some end within seconds."""
        poll_s = self._batching(entry.note.provider).poll_s
        return entry.polled_at + min(poll_s, max(1.0, 0.1 * (entry.polled_at - entry.since)))

    async def _poll(self, entry: _Open) -> None:
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
        else:
            self._say(entry, batch)

    async def _lost(self, entry: _Open, said: str) -> None:
        provider, note = self._providers[entry.note.provider], entry.note
        if note.key_mark != batch_notes.key_mark(provider.key(), note.id):
            raise ProviderStopped(
                f"{provider.named} does not know batch {note.batch} ({note.rows:,} requests), which was made with "
                f"another key. Put that key back into {provider.secret_named} until it has ended, or give it up (its "
                f"requests are paid again) by deleting {self._files.url}/{batch_notes.OPEN}/{note.id}.json"
            )
        self._tell(f"batch {note.batch} at {note.provider} is lost there ({said}); its requests are asked again")
        results = Results(entry.keys, f"the provider lost batch {note.batch}")
        await self._settle(entry, results, lost=True)
        self._finish(entry, results, "lost")

    def _say(self, entry: _Open, batch: Batch) -> None:
        now, done = time.monotonic(), batch.completed + batch.failed
        entry.first = entry.first or (now, done)
        if (batch.status, done) == entry.told or (now - entry.told_at < TELL_S and batch.status == entry.told[0]):
            return
        entry.told, entry.told_at = (batch.status, done), now
        total = batch.total or entry.note.rows
        left = _left(batch, total, now - entry.first[0], done - entry.first[1])
        self._tell(f"batch {batch.id} at {entry.note.provider}: {batch.status}, {done:,} of {total:,}{left}")

    # ---------------------------------------------------------------- results

    async def _collect(self, entry: _Open, batch: Batch) -> None:
        """Record whatever an ended batch answered, whichever way it ended."""
        self._check_ours(entry.note)
        provider, faults = self._providers[entry.note.provider], "; ".join(f.message for f in batch.faults[:3])
        results = Results(entry.keys, f"batch {batch.id} {batch.status}{': ' + faults if faults else ''}")
        for file, count in ((batch.output_file, batch.completed), (batch.error_file, batch.failed)):
            if file is not None:
                path = await self._fetched(entry.note, file, count)
                results.read(path, provider, entry.note.model, lambda k, a: self._record(entry, results, k, a))
                path.unlink(missing_ok=True)
        if batch.status == "failed" and entry.ours:
            results.blame(batch.faults, entry.keys)
        if any(f.code == "token_limit_exceeded" for f in batch.faults):
            self._back_off(entry, results)
        await self._settle(entry, results)
        self._finish(entry, results, batch.status)
        if entry.note.input_file:
            await self._apis[entry.note.provider].discard(entry.note.input_file)

    async def _fetched(self, note: Note, file: str, count: int) -> Path:
        path = self._folder / f"{note.id}-results.jsonl"
        for attempt in range(1, DOWNLOADS + 1):
            try:
                await self._apis[note.provider].download(file, path)
            except Lost:  # results are not kept for ever: what is gone is asked again
                path.write_bytes(b"")
            with open(path, "rb") as stream:  # noqa: ASYNC230 (the loop is ours alone)
                lines = sum(1 for _ in stream)
            if lines >= count:
                break
            self._tell(f"result file {file} of batch {note.batch}: {lines:,} of {count:,} lines ({attempt})")
        return path

    def _record(self, entry: _Open, results: Results, key: str, answer: Answer) -> None:
        note = entry.note
        tries = 1 + self._failures.get(key, 0)
        price = self._batching(note.provider).price
        told = replace(answer, attempts=tries) if tries > 1 else answer
        results.paid_usd += self._purse.cost_usd((note.provider, note.model), answer, price, entry.usd.get(key, 0.0))
        self._ledger.record(Asked(key, note.provider, note.model), told, note.experiment, price)

    async def _settle(self, entry: _Open, results: Results, lost: bool = False) -> None:
        """What the batch cost; all that was set aside, where the provider has lost it and cannot say."""
        if entry.ours:
            reserved = sum(entry.usd.values())
            paid = reserved if lost else results.paid_usd
            unknown = 0 if any(entry.usd.values()) else len(results.answered)
            lane = (entry.note.provider, entry.note.model)
            await self._purse.settle(lane, paid, reserved - paid, unknown)

    def _back_off(self, entry: _Open, results: Results) -> None:
        """The provider's queue for this model is full: no fault of the rows. Alone in it, the batch is too large."""
        lane = (entry.note.provider, entry.note.model)
        state = self._state(lane)
        others = any((o.note.provider, o.note.model) == lane for o in self._open.values() if o is not entry)
        state.full = others
        results.blameless = others or len(entry.keys) > 1
        if not others:
            state.requests = max(1, len(entry.keys) // 2)
            self._tell(f"{lane[0]} has no room for {len(entry.keys):,} requests to {lane[1]}: smaller batches")

    def _finish(self, entry: _Open, results: Results, outcome: str) -> None:
        """Every row's fate, close the note, and stop where asking on would be in vain."""
        asks = self._batching(entry.note.provider).asks
        for key, why in results.failed():
            self._failures[key] += not results.blameless
            if self._failures[key] >= asks:
                self._refuse(key, f"no answer in {asks} batches: {why}")
        for key, answer in results.refused.items():
            self.refused[key] = answer
        if entry.ours:
            self.fresh.update(results.answered, results.refused)
        lost = len(results.left) - len(results.refused)
        self._tell(
            f"batch {entry.note.batch} at {entry.note.provider} {outcome}: {len(results.answered):,} answered"
            + (f", {len(results.refused):,} refused" if results.refused else "")
            + (f", {lost:,} without an answer" if lost else "")
        )
        self._close(entry, outcome)
        self._poor = False
        self._judge(entry, results, outcome)

    def _judge(self, entry: _Open, results: Results, outcome: str) -> None:
        """The circuit breaker: raises when somebody has to mend something, or batches in a row came to nothing."""
        provider, state = self._providers[entry.note.provider], self._state((entry.note.provider, entry.note.model))
        state.full = state.full and bool(results.blameless)
        state.answered += len(results.answered)
        state.barren = 0 if results.answered else state.barren + (not results.blameless)
        if results.stop is not None:
            raise results.stop
        if outcome == "cancelled":
            raise ProviderStopped(
                f"{provider.named}: batch {entry.note.batch} was cancelled there. What it answered is kept; start "
                "again to have the rest asked in a new one"
            )
        if not state.answered and len(results.refused) >= REFUSED_AT_FIRST:
            raise ProviderStopped(
                f"{provider.named} refused {len(results.refused):,} requests of the first batch and answered none, the "
                f"last one: {results.refused.popitem()[1].refused}. Check the model's name and parameters."
            )
        if state.barren >= self._batching(provider.name).asks:
            if outcome == "failed":
                raise ProviderStopped(f"{provider.named} takes no batch: {results.why}")
            if len(results.left) >= BREAK_AFTER:
                raise ProviderDown(
                    f"{provider.named}: {state.barren} batches in a row without an answer, the last one: "
                    f"{results.why}. What was answered is kept; start again when it is back."
                )

    def _close(self, entry: _Open, outcome: str) -> None:
        """Replies are durable, then the note is closed, then what is left of its claims is free."""
        self._ledger.flush()
        batch_notes.close(self._files, entry.note, outcome)
        self._ledger.end(entry.note.holder)
        self._ledger.release([entry.note.id])
        for key in entry.keys:
            self._forget_place(key, entry.note.id)
        self._open.pop(entry.note.id, None)
        self._ended.add(entry.note.id)


def check_places(files: Files, providers: Mapping[str, Provider]) -> None:
    """Raises ValueError when a batch is open at another place than where its provider is now."""
    for note in batch_notes.open_notes(files):
        if note.provider in providers:
            _check_place(files, providers[note.provider], note)


def _check_place(files: Files, provider: Provider, note: Note) -> None:
    if provider.base_url.rstrip("/") != note.base_url.rstrip("/"):
        raise ValueError(
            f"[providers.{note.provider}] base_url = {provider.base_url!r}: a batch of {note.rows:,} requests is open "
            f"at {note.base_url}. Put that back until it has ended, or give it up (its requests are paid again) by "
            f"deleting {files.url}/{batch_notes.OPEN}/{note.id}.json"
        )


def _line(request: Request) -> bytes:
    """One line of a batch file. The key comes first: `_only` relies on it."""
    line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": request.body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _only(path: Path, keys: set[str]) -> Path:
    """The file with the lines of `keys` alone."""
    begin, chosen = len(b'{"custom_id":"'), path.with_suffix(".some")
    with open(path, "rb") as lines, open(chosen, "wb") as sink:
        sink.writelines(line for line in lines if line[begin : begin + 40].decode() in keys)
    return chosen.replace(path)


def _left(batch: Batch, total: int, seconds: float, done: int) -> str:
    """How long yet: by its pace since we look, else by its deadline."""
    if done > 0:
        return f", about {_clock(seconds / done * (total - batch.completed - batch.failed))} yet"
    if batch.expires_at:
        return f", {_clock(max(0.0, batch.expires_at - time.time()))} yet at most"
    return ""


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{max(1, minutes)} min"
