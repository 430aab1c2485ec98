"""Drives the domain's askings against OpenAI-compatible servers: many in flight, every paid reply through the ledger.

A thin client of our own on aiohttp and orjson: about 0.2 ms of CPU a call, where the SDKs take 2 to 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from empathy.requests import Answer, Asking, Request
from serving.blame import Blame
from serving.calls import Calls, Counts, keep
from serving.claiming import Claiming
from serving.ledger import Ledger
from serving.lines import Line
from serving.permits import Permits
from serving.providers import Provider
from serving.quota import Here, Quota

__all__ = ["Client", "Counts", "drive"]

T = TypeVar("T")
LOOK_AHEAD = 512
"""Rows whose next request is claimed before it can be sent: a part's requests go into one record of the claims' log."""
DRAIN_S = 30.0
"""How long a stopped run waits for replies that are on their way."""


class Client:
    """Answers requests through the ledger. An async context manager, in one event loop; several `drive`s may share
    it. Every attempt waits for its permit from `quota`; without one nothing is slowed down until the first 429."""

    def __init__(
        self,
        providers: Mapping[str, Provider] | Sequence[Provider] | Provider,
        ledger: Ledger,
        in_flight: int = 64,
        quota: Quota | None = None,
    ):
        if isinstance(providers, Provider):
            providers = [providers]
        self._providers = providers if isinstance(providers, Mapping) else {p.name: p for p in providers}
        self._ledger, self.in_flight = ledger, in_flight
        self._lines: dict[str, Line] = {}
        self._claiming, self._permits = Claiming(ledger), Permits(quota or Here())
        self._calls = Calls(self._permits, self._claiming)
        self._blame = Blame(self._calls, self._claiming, ledger)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Client:
        for provider in self._providers.values():
            provider.key()  # a missing key is told before anything is sent
        await self._stack.enter_async_context(self._permits)
        await self._stack.enter_async_context(self._claiming)
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._stack.aclose()

    def _provider(self, request: Request) -> Provider:
        if request.provider not in self._providers:
            raise ValueError(
                f"provider = {request.provider!r}: not given to the client; there are {', '.join(self._providers)}"
            )
        return self._providers[request.provider]

    @property
    def away(self) -> dict[str, str]:
        """Providers that answer nothing now and are waited for, by name: why, and for how long."""
        return {
            line.provider.name: f"{line.provider.named} answers nothing ({why}); it is asked again for up to "
            f"{line.provider.patience_s / 60:,.3g} min, its rows wait"
            for line in self._lines.values()
            for why in line.away.values()
        }

    def known(self, request: Request, counts: Counts) -> Answer | None:
        """The reply that the ledger has, unless a model answered that is not accepted (then it may be asked for
        again)."""
        answer = self._ledger.get(request.key)
        if answer is None:
            if request.key in self._ledger.damaged:
                self._ledger.damaged.remove(request.key)  # told once
                counts.damaged += 1
            return None
        provider = self._provider(request)
        if not provider.accepts(request.model, answer.model_served):
            self._ledger.forget(request.key)
            self._line(provider).doubted.add(request.model)
            return None
        counts.had(answer, self._ledger.experiment)
        return answer

    async def answer(self, request: Request, counts: Counts) -> Answer:
        """The reply: from the ledger, from whoever is asking for it now, or from the provider.

        Raises ProviderStopped, ProviderDown, BudgetSpent, or OSError when the ledger cannot be read or written.
        """
        provider = self._provider(request)
        while await self._claiming.ours(request.key):
            try:
                if (answer := await self._ask(request, counts)) is not None:
                    return answer
            finally:
                self._claiming.done(request.key)
        answer = self._ledger.get(request.key)
        assert answer is not None, "whoever waited is told when the reply is there"
        provider.check_served(request.model, answer.model_served)
        counts.had(answer, self._ledger.experiment)
        return answer

    def halt(self) -> None:
        """Send nothing more: the run ends."""
        self._calls.stopping = True

    async def stop(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Send nothing more. What is in flight is paid for: its replies are awaited (for a while) and kept."""
        self.halt()
        for task in tasks:
            if task not in self._calls.sending:
                task.cancel()
        if sending := self._calls.sending.intersection(tasks):
            await asyncio.wait(sending, timeout=DRAIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _line(self, provider: Provider) -> Line:
        if provider.name not in self._lines:
            self._lines[provider.name] = line = Line(provider, self.in_flight)
            self._stack.push_async_callback(line.session.close)
        return self._lines[provider.name]

    async def _ask(self, request: Request, counts: Counts) -> Answer | None:
        """Send until there is an answer; None when the claim was lost before sending (we were taken for dead)."""
        line = self._line(self._provider(request))
        try:
            body = orjson.dumps(request.body)
        except TypeError as error:  # a lone surrogate: no JSON can carry it
            return Answer("", "refused", refused=f"the request cannot be encoded: {error}")
        async with line.places:
            while request.model in line.doubted:
                async with line.trial:  # one reply is paid to see whether that has been mended, and not one a row
                    if request.model in line.doubted:
                        return await self._sent(line, request, body, counts)
            return await self._sent(line, request, body, counts)

    async def _sent(self, line: Line, request: Request, body: bytes, counts: Counts) -> Answer | None:
        outcome = await self._blame.answer(line, request, body, counts)
        if outcome is None:
            return None
        answer, given_up = outcome
        keep(self._ledger, request, answer, counts)
        line.judge(request.model, answer, given_up)
        line.provider.check_served(request.model, answer.model_served)
        if answer.refused is None:
            line.doubted.discard(request.model)
        return answer

    async def drive(
        self, askings: Iterable[tuple[str, Asking[T]]], counts: Counts | None = None
    ) -> AsyncGenerator[tuple[str, T], None]:
        """Run generators of requests; yields (id, record) as each ends. See the function `drive`."""
        counts = Counts() if counts is None else counts
        window, feed = max(LOOK_AHEAD, 8 * self.in_flight), iter(askings)
        out: asyncio.Queue[tuple[str, Any, Exception | None]] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()
        exhausted, open_rows, at_once = False, 0, 0
        try:
            while not exhausted or open_rows:
                while not exhausted and open_rows < window:
                    item = next(feed, None)
                    if item is None:
                        exhausted = True
                        break
                    ident, asking = item
                    outcome = _advance(self, asking, None, counts)
                    if isinstance(outcome, _Pending):
                        task = asyncio.create_task(_finish(self, ident, outcome, counts, out))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                        open_rows += 1
                    else:
                        yield ident, outcome
                        at_once += 1
                        if at_once % 32 == 0:
                            await asyncio.sleep(0)  # rows that the ledger answers must not hold up calls in flight
                while open_rows and (
                    exhausted or open_rows > window // 2
                ):  # refilled when half empty: fewer, larger claims
                    ident, record, error = await out.get()
                    open_rows -= 1
                    if error is not None:
                        raise error
                    yield ident, record
        finally:
            if open_rows:  # not at the end of its own accord
                await self.stop(tasks)


@dataclass(frozen=True)
class _Pending:
    """An asking that waits for an answer the ledger does not have."""

    asking: Asking[Any]
    request: Request


def _advance(client: Client, asking: Asking[T], answer: Answer | None, counts: Counts) -> T | _Pending:
    """Send answers into the generator as long as the ledger has them. The record, or what is still to be asked."""
    try:
        request = asking.send(answer) if answer is not None else next(asking)
        while (known := client.known(request, counts)) is not None:
            request = asking.send(known)
    except StopIteration as end:  # how a generator returns its value
        value: T = end.value
        return value
    return _Pending(asking, request)


async def _finish(client: Client, ident: str, pending: _Pending, counts: Counts, out: asyncio.Queue[Any]) -> None:
    """Carry one asking to its record; what goes wrong is handed to whoever drives."""
    try:
        outcome: Any = pending
        while isinstance(outcome, _Pending):
            outcome = _advance(client, outcome.asking, await client.answer(outcome.request, counts), counts)
        out.put_nowait((ident, outcome, None))
    except Exception as error:  # noqa: BLE001  re-raised by `drive`: a task has no caller
        client.halt()
        out.put_nowait((ident, None, error))


async def drive(
    askings: Iterable[tuple[str, Asking[T]]],
    providers: Mapping[str, Provider] | Sequence[Provider] | Provider,
    ledger: Ledger,
    in_flight: int = 64,
    counts: Counts | None = None,
    quota: Quota | None = None,
) -> AsyncGenerator[tuple[str, T], None]:
    """Run generators of requests, at most `in_flight` requests at a time; yields (id, record) as each ends.

    Askings are taken as they are needed (any number streams through). Every reply goes through `ledger`; when the
    iterator is exhausted or closed all of them are durable and no claim is left open. Raises what a generator raises;
    ValueError for a missing key before anything is sent; ProviderStopped, ProviderDown; BudgetSpent when the quota's
    cap in dollars leaves no room; OSError when the ledger fails or the quota's authority is gone.
    """
    async with (
        Client(providers, ledger, in_flight, quota) as client,
        aclosing(client.drive(askings, counts)) as answered,
    ):
        async for item in answered:
            yield item
