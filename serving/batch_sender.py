"""Requests are gathered by (provider, model), paid for, claimed in the batch's own name, uploaded, and a batch made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from empathy.requests import Request
from serving import batch_notes
from serving.batch_api import TooLarge
from serving.batch_basket import Basket, line_of, only
from serving.batch_keeper import Entry, Keeper
from serving.batch_purse import Purse
from serving.batch_register import ELSEWHERE, NO_ROOM, Register
from serving.ledger import Ledger
from serving.providers import Provider, ProviderStopped
from serving.rates import Route


class Sender:
    """Batches in the making, in files under `folder`; `close` it."""

    def __init__(
        self,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        keeper: Keeper,
        purse: Purse,
        register: Register,
        folder: Path,
        tell: Callable[[str], None],
    ):
        self._ledger, self._providers, self._keeper, self._purse = ledger, providers, keeper, purse
        self._register, self._folder, self._tell = register, folder, tell
        self._baskets: dict[Route, Basket] = {}

    def close(self) -> None:
        for basket in self._baskets.values():
            basket.sink.close()

    async def want(self, request: Request) -> str:
        """Have it asked; the id of the batch to wait for, or ELSEWHERE, NO_ROOM, AGAIN."""
        register, key, route = self._register, request.key, (request.provider, request.model)
        if key in register.where or key in register.elsewhere:
            return register.where.get(key, ELSEWHERE)
        batching = register.batching(request.provider)
        try:
            line = line_of(request)
        except TypeError as error:  # a lone surrogate: no JSON can carry it
            return register.refuse(key, f"the request cannot be encoded: {error}")
        if len(line) > batching.file_bytes:
            return register.refuse(key, f"the request has {len(line):,} bytes, a batch at most {batching.file_bytes:,}")
        if register.poor:
            return NO_ROOM if register.open else ELSEWHERE
        usd = self._purse.most_usd(request, len(line), batching.price)
        basket = await self._basket(route, len(line))
        if basket is None:
            return NO_ROOM
        basket.add(key, line, usd)
        register.where[key] = basket.note.id
        return basket.note.id

    async def flush(self) -> None:
        """Send what is gathered, in batches that are not full."""
        for route in list(self._baskets):
            await self._submit(route)

    async def _basket(self, route: Route, size: int) -> Basket | None:
        """One with room for `size` more bytes; None when no more batches may be open."""
        basket, most_bytes = self._baskets.get(route), self._register.batching(route[0]).file_bytes
        if basket and (len(basket.keys) >= self._register.learnt(route).most or basket.size + size > most_bytes):
            await self._submit(route)
            basket = None
        if basket is None and self._register.has_room(route, self._baskets):
            basket = self._new_basket(route)
        return basket

    def _new_basket(self, route: Route) -> Basket:
        note = batch_notes.new_note(self._providers[route[0]], route[1], self._ledger.writer, self._ledger.experiment)
        path = self._folder / f"{note.id}.jsonl"
        self._baskets[route] = basket = Basket(note, path, open(path, "wb"))  # noqa: SIM115 (closed when it is sent)
        return basket

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
        self._register.poor = paid < len(basket.keys)
        usd = dict(zip(basket.keys[:paid], basket.usd, strict=False))
        granted = self._keeper.claim(basket.note, list(usd)) if usd else set[str]()
        for key in basket.keys:
            if key not in granted:
                self._register.forget_place(key, basket.note.id)
                if key in usd:
                    self._register.elsewhere.add(key)
        keys = [key for key in usd if key in granted]
        entry = Entry(replace(basket.note, rows=len(keys)), keys, True, {k: usd[k] for k in keys})
        await self._purse.settle(route, 0.0, sum(usd.values()) - entry.reserved_usd)
        if usd and not keys:
            self._register.close(entry, "others ask for all of it")
        if not keys:
            self._register.ended.add(basket.note.id)
        return entry

    async def _send(self, entry: Entry, path: Path) -> None:
        """A batch that was surely not created is closed again, so that nobody waits for it."""
        try:
            await self._keeper.send(entry, path)
        except TooLarge as error:  # smaller files than the documentation says
            self._halve(entry, str(error))
            self._register.close(entry, f"too large: {error}")
            await self._purse.settle(entry.route, 0.0, entry.reserved_usd)
        except ProviderStopped:
            self._register.close(entry, "refused")
            await self._purse.settle(entry.route, 0.0, entry.reserved_usd)
            raise
        else:
            self._register.open[entry.note.id] = entry
            self._tell(
                f"batch {entry.note.batch} at {entry.route[0]}: {len(entry.keys):,} requests to {entry.route[1]}"
            )

    def _halve(self, entry: Entry, why: str) -> None:
        if len(entry.keys) == 1:
            self._register.refuse(entry.keys[0], f"too large for a batch of its own: {why}")
        self._register.learnt(entry.route).requests = max(1, len(entry.keys) // 2)
