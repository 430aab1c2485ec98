"""The ledger's claims for coroutines: many single wishes go into few records, and waiting for somebody else's reply is
polling.

While one record is being written the next wishes gather (group commit), so a part's requests are one record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from serving.ledger import Ledger

POLL_S = 0.1


class Claiming:
    """Async context manager around one ledger, in one event loop."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}
        self._asking: set[str] = set()
        self._given_up: list[str] = []
        self._wished = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._closing = False

    async def ours(self, key: str) -> bool:
        """True: the caller is to send this request, and must call `done` after. False: its reply is in the ledger
        now."""
        if key in self._ledger:
            return False
        assert self._pump is not None, "entered"
        if self._pump.done():
            self._pump.result()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(future)
        self._wished.set()
        return await future

    def done(self, key: str) -> None:
        """The caller has recorded the reply, or gives up: then the next one who waits may ask."""
        self._asking.discard(key)
        if key in self._ledger:
            self._answered(key)
        else:
            self._given_up.append(key)
            self._wished.set()

    async def sure(self, key: str) -> bool:
        """Whether the key is still ours to send. Raises OSError when the store cannot be reached."""
        if not self._ledger.holds(key):
            await asyncio.to_thread(self._ledger.renew)
        return self._ledger.holds(key)

    def _answered(self, key: str) -> None:
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(False)

    def _granted(self, key: str) -> None:
        """Hand the claim to the first who still waits."""
        queue = self._waiting[key]
        while queue and queue[0].done():
            queue.popleft()
        if not queue:
            self._given_up.append(key)
        else:
            self._asking.add(key)
            queue.popleft().set_result(True)
        if not queue:
            del self._waiting[key]

    def _round(self, keys: list[str], given_up: list[str]) -> set[str]:
        """The blocking part, in a thread."""
        if given_up:
            self._ledger.release(given_up)
        return self._ledger.claim(keys) if keys else set()

    async def _pumping(self) -> None:
        while True:
            await self._wished.wait()
            self._wished.clear()
            if self._closing:
                return
            given_up, self._given_up = self._given_up, []
            wanted = [k for k in self._waiting if k not in self._asking]
            mine = await asyncio.to_thread(self._round, wanted, given_up)
            for key in wanted:
                if key in self._ledger:
                    self._answered(key)
                elif key in mine:
                    self._granted(key)
            if not self._wished.is_set() and any(k not in self._asking for k in self._waiting):
                asyncio.get_running_loop().call_later(POLL_S, self._wished.set)

    async def _guarded(self) -> None:
        """A store that fails fails everybody who waits."""
        try:
            await self._pumping()
        except Exception as error:  # re-raised in every waiting coroutine: this task has no caller
            for queue in self._waiting.values():
                for future in queue:
                    if not future.done():
                        future.set_exception(error)
            raise

    async def __aenter__(self) -> Claiming:
        self._pump = asyncio.create_task(self._guarded(), name="ledger-claims")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Everything recorded is durable, and what is open is given back."""
        assert self._pump is not None
        self._closing = True
        self._wished.set()
        await asyncio.gather(self._pump, return_exceptions=True)  # a record that is being written is finished first
        await asyncio.to_thread(self._ledger.flush)
        await asyncio.to_thread(self._ledger.release)
