"""Drives the domain's askings against OpenAI-compatible servers: many in flight, every paid reply through the ledger.

A thin client of our own on aiohttp and orjson: about 0.2 ms of CPU a call, where the SDKs take 2 to 5.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from empathy.requests import Answer, Asking, Request
from serving.claiming import Claiming
from serving.ledger import Ledger
from serving.providers import Provider, ProviderDown, ProviderStopped, Retry, read_reply

T = TypeVar("T")
LOOK_AHEAD = 512
"""Rows whose next request is claimed before it can be sent: a part's requests go into one record of the claims' log."""
BREAK_AFTER = 5
"""So many rows in a row without any answer: the provider is down."""
REFUSED_AT_FIRST = 20
"""So many rows refused and none answered yet: it is the request that is wrong, not the rows."""
BACKOFF_LIMIT_S = 30.0
DRAIN_S = 30.0
"""How long a stopped run waits for replies that are on their way."""


@dataclass
class Counts:
    """What driving did. `unknown` are attempts that ended without a response: the provider may have billed them.

    `shared` are those answers from the ledger that another experiment had paid for, with their tokens.
    """

    calls: int = 0
    from_ledger: int = 0
    shared: int = 0
    shared_tokens_in: int = 0
    shared_tokens_out: int = 0
    retries: int = 0
    limited: int = 0
    unknown: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def had(self, answer: Answer, experiment: str) -> None:
        """`answer` came from the ledger of a run of `experiment`."""
        self.from_ledger += 1
        if answer.paid_by not in ("", experiment):
            self.shared += 1
            self.shared_tokens_in += answer.tokens_in or 0
            self.shared_tokens_out += answer.tokens_out or 0


class _Line:
    """One provider in one event loop: its session, its free places, and the pause that a 429 imposes on all its
    requests."""

    def __init__(self, provider: Provider, in_flight: int):
        self.provider = provider
        self.places = asyncio.Semaphore(min(in_flight, provider.in_flight or in_flight))
        self.paused_until = 0.0
        self.lost_in_a_row = self.refused_at_first = 0
        self._key = provider.key()
        headers = {"Content-Type": "application/json", "User-Agent": "empathy"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        local = urlsplit(provider.base_url).hostname in ("127.0.0.1", "localhost", "::1")
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=provider.timeout_s),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not local,  # proxies are for what is elsewhere
        )

    def _hidden(self, raw: bytes) -> bytes:
        """`raw` without the key: no error, log or reply shall carry it."""
        return raw.replace(self._key.encode(), b"(secret)") if self._key else raw

    async def attempt(self, request: Request, body: bytes) -> Answer | Retry:
        """Send once."""
        try:
            async with self.session.post(self.provider.url, data=body, allow_redirects=False) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:  # what another attempt may heal
            billed = not isinstance(error, aiohttp.ClientConnectorError)
            return Retry(
                self._hidden(f"{type(error).__name__}: {error}".encode())[:200].decode().rstrip(": "), unknown=billed
            )
        return read_reply(self.provider, request, response.status, response.headers, self._hidden(raw))

    def judge(self, answer: Answer, lost: bool) -> None:
        """The circuit breaker. Raises when rows in a row came to nothing."""
        self.lost_in_a_row = self.lost_in_a_row + 1 if lost else 0
        if self.lost_in_a_row >= BREAK_AFTER:
            raise ProviderDown(
                f"{self.provider.named}: {BREAK_AFTER} requests in a row without an answer, the last one: "
                f"{answer.refused}. What was answered is kept; start again when it is back."
            )
        if answer.refused is None:
            self.refused_at_first = -1
        elif self.refused_at_first >= 0 and not lost:
            self.refused_at_first += 1
            if self.refused_at_first >= REFUSED_AT_FIRST:
                raise ProviderStopped(
                    f"{self.provider.named} refused the first {REFUSED_AT_FIRST} requests, the last one: "
                    f"{answer.refused}. Check the model's name and parameters."
                )


class Client:
    """Answers requests through the ledger. An async context manager, in one event loop; several `drive`s may share
    it."""

    def __init__(
        self, providers: Mapping[str, Provider] | Sequence[Provider] | Provider, ledger: Ledger, in_flight: int = 64
    ):
        if isinstance(providers, Provider):
            providers = [providers]
        self._providers = providers if isinstance(providers, Mapping) else {p.name: p for p in providers}
        self._ledger, self.in_flight = ledger, in_flight
        self._lines: dict[str, _Line] = {}
        self._claiming = Claiming(ledger)
        self._stack = AsyncExitStack()
        self._sending: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def __aenter__(self) -> Client:
        for provider in self._providers.values():
            provider.key()  # a missing key is told before anything is sent
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

    def known(self, request: Request, counts: Counts) -> Answer | None:
        """The reply that the ledger has, unless a model answered that is not accepted (then it may be asked for
        again)."""
        answer = self._ledger.get(request.key)
        if answer is None:
            return None
        if not self._provider(request).accepts(request.model, answer.model_served):
            self._ledger.forget(request.key)
            return None
        counts.had(answer, self._ledger.experiment)
        return answer

    async def answer(self, request: Request, counts: Counts) -> Answer:
        """The reply: from the ledger, from whoever is asking for it now, or from the provider.

        Raises ProviderStopped, ProviderDown, or OSError when the ledger cannot be read or written.
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

    async def stop(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Send nothing more. What is in flight is paid for: its replies are awaited (for a while) and kept."""
        self._stopping = True
        for task in tasks:
            if task not in self._sending:
                task.cancel()
        if sending := self._sending.intersection(tasks):
            await asyncio.wait(sending, timeout=DRAIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _line(self, provider: Provider) -> _Line:
        if provider.name not in self._lines:
            self._lines[provider.name] = line = _Line(provider, self.in_flight)
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
            if not await self._claiming.sure(request.key):
                return None
            answer, lost = await self._persist(line, request, body, counts)
            if answer.finish_reason != "refused":
                self._ledger.record(request, answer)
                counts.tokens_in += answer.tokens_in or 0
                counts.tokens_out += answer.tokens_out or 0
        line.judge(answer, lost)
        line.provider.check_served(request.model, answer.model_served)
        return answer

    async def _attempt(self, line: _Line, request: Request, body: bytes) -> Answer | Retry:
        task = asyncio.current_task()
        assert task is not None
        if self._stopping:
            raise asyncio.CancelledError
        self._sending.add(task)
        try:
            return await line.attempt(request, body)
        finally:
            self._sending.discard(task)

    async def _persist(self, line: _Line, request: Request, body: bytes, counts: Counts) -> tuple[Answer, bool]:
        """Attempt until something comes of it. (answer, whether it stands for no answer at all)"""
        provider, began, failed, sent = line.provider, time.monotonic(), 0, 0
        while True:
            while (pause := line.paused_until - time.monotonic()) > 0:  # noqa: ASYNC110 (it may be prolonged meanwhile)
                await asyncio.sleep(pause + random.uniform(0, 0.2 * pause))
            sent += 1
            counts.calls += 1
            outcome = await self._attempt(line, request, body)
            if isinstance(outcome, Answer):
                return (replace(outcome, attempts=sent) if sent > 1 else outcome), False
            failed += not outcome.limited
            counts.limited += outcome.limited
            counts.unknown += outcome.unknown
            wait_s = outcome.after_s if outcome.after_s is not None else _backoff_s(provider, sent)
            if failed >= provider.attempts or time.monotonic() - began + wait_s > provider.patience_s:
                return Answer(
                    "", "refused", refused=f"no answer after {sent} attempts: {outcome.reason}", attempts=sent
                ), True
            counts.retries += 1
            if outcome.limited:
                line.paused_until = max(line.paused_until, time.monotonic() + wait_s)
            else:
                await asyncio.sleep(wait_s)

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


def _backoff_s(provider: Provider, sent: int) -> float:
    """Exponential, with jitter over its upper half."""
    return min(BACKOFF_LIMIT_S, provider.backoff_s * 2.0 ** (sent - 1)) * random.uniform(0.5, 1.0)


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
        out.put_nowait((ident, None, error))


async def drive(
    askings: Iterable[tuple[str, Asking[T]]],
    providers: Mapping[str, Provider] | Sequence[Provider] | Provider,
    ledger: Ledger,
    in_flight: int = 64,
    counts: Counts | None = None,
) -> AsyncGenerator[tuple[str, T], None]:
    """Run generators of requests, at most `in_flight` requests at a time; yields (id, record) as each ends.

    Askings are taken as they are needed (any number streams through). Every reply goes through `ledger`; when the
    iterator is exhausted or closed all of them are durable and no claim is left open. Raises what a generator raises;
    ValueError for a missing key before anything is sent; ProviderStopped, ProviderDown; OSError when the ledger cannot
    be read or written.
    """
    async with Client(providers, ledger, in_flight) as client, aclosing(client.drive(askings, counts)) as answered:
        async for item in answered:
            yield item
