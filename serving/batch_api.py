"""The control calls of an OpenAI-shaped batch API: upload requests, create a batch, look at it, fetch results.

What can heal is tried again with a bound; only `create` is not, because a second one would be a second bill.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import orjson

from serving.providers import MEND, Provider, ProviderDown, ProviderStopped, Retry, message, retry_after_s

T = TypeVar("T")
ENDPOINT, WINDOW = "/v1/chat/completions", "24h"
ENDED = {"completed", "failed", "expired", "cancelled"}
LIST_PAGE = 100
SLOWEST_UPLOAD_BYTES_S = 100_000
CHUNK_BYTES = 1 << 20
BACKOFF_LIMIT_S = 30.0
LONGEST_LINE_BYTES = 16 << 20


class TooLarge(Exception):
    """The provider takes no file of this size."""


class Lost(Exception):
    """What was asked for is not there (404)."""


class Unsure(Exception):
    """A batch may have been created: no answer came, or none that tells."""

    def __init__(self, reason: str, after_s: float | None = None):
        super().__init__(reason)
        self.after_s = after_s


@dataclass(frozen=True)
class Fault:
    """Why a batch failed; `line` is the line of its file (from 1), if it is one line's fault."""

    code: str
    message: str
    line: int | None


@dataclass(frozen=True)
class Batch:
    """What the provider says of a batch. Times are unix seconds of its own clock."""

    id: str
    status: str
    input_file: str
    output_file: str | None
    error_file: str | None
    total: int
    completed: int
    failed: int
    faults: tuple[Fault, ...]
    created_at: int
    expires_at: int | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def read_batch(body: dict[str, Any]) -> Batch:
    """A batch object; providers differ in case and in how they say "none"."""
    counts = body.get("request_counts") or {}
    faults = (body.get("errors") or {}).get("data") or []
    return Batch(
        id=body["id"],
        status=str(body["status"]).lower(),
        input_file=body["input_file_id"],
        output_file=body.get("output_file_id") or None,
        error_file=body.get("error_file_id") or None,
        total=counts.get("total") or 0,
        completed=counts.get("completed") or 0,
        failed=counts.get("failed") or 0,
        faults=tuple(Fault(str(f.get("code")), str(f.get("message")), f.get("line")) for f in faults),
        created_at=int(body.get("created_at") or 0),
        expires_at=body.get("expires_at"),
    )


class BatchApi:
    """One provider's batch API in one event loop. An async context manager.

    Every call raises ProviderStopped for what somebody has to mend, and ProviderDown when what might heal has not
    within the provider's `patience_s`.
    """

    def __init__(self, provider: Provider):
        self.provider = provider
        self._key = provider.key()
        self._base = provider.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> BatchApi:
        headers = {"User-Agent": "empathy"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        local = urlsplit(self._base).hostname in ("127.0.0.1", "localhost", "::1")
        self._session = aiohttp.ClientSession(
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not local,  # proxies are for what is elsewhere
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._session is not None
        await self._session.close()

    # ---------------------------------------------------------------- calls

    async def upload(self, path: Path, name: str) -> str:
        """Upload a file of requests; its id. Uploading again costs nothing. Raises TooLarge."""
        seconds = self.provider.timeout_s + os.path.getsize(path) / SLOWEST_UPLOAD_BYTES_S  # noqa: ASYNC240 (one stat)

        async def once() -> str | Retry:
            with open(path, "rb") as stream:  # noqa: ASYNC230 (aiohttp reads it in a thread)
                form = aiohttp.FormData({"purpose": "batch"})
                form.add_field("file", stream, filename=name, content_type="application/jsonl")
                async with self._send("POST", "/files", seconds, data=form) as response:
                    body = await self._json(response)
            return body if isinstance(body, Retry) else str(body["id"])

        try:
            return await self._persist("POST /files", once)
        except Lost:
            raise self._no_batches() from None

    async def create(self, input_file: str, note: str) -> Batch:
        """Create a batch, sent once. Raises Unsure when it may or may not have been created: then `find` it."""
        body = {
            "input_file_id": input_file,
            "endpoint": ENDPOINT,
            "completion_window": WINDOW,
            "metadata": {"empathy": note},
        }
        try:
            async with self._send("POST", "/batches", self.provider.timeout_s, json=body) as response:
                answer = await self._json(response)
        except Lost:
            raise self._no_batches() from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Unsure(self._hidden(f"{type(error).__name__}: {error}")) from None
        if isinstance(answer, Retry):
            raise Unsure(answer.reason, answer.after_s)
        return read_batch(answer)

    async def get(self, batch: str) -> Batch:
        """Raises Lost when the provider does not know it."""

        async def once() -> Batch | Retry:
            async with self._send("GET", f"/batches/{batch}", self.provider.timeout_s) as response:
                body = await self._json(response)
            return body if isinstance(body, Retry) else read_batch(body)

        return await self._persist(f"GET /batches/{batch}", once)

    async def find(self, input_file: str) -> Batch | None:
        """The batch made of this file, looked for in the provider's whole list; None when there is none."""
        after = ""
        while True:
            try:
                page = await self._persist("GET /batches", lambda after=after: self._page(after))  # type: ignore[misc]
            except Lost:
                raise self._no_batches() from None
            for body in page["data"]:
                if body["input_file_id"] == input_file:
                    return read_batch(body)
            if not page.get("has_more") or not page["data"]:
                return None
            after = page["data"][-1]["id"]

    async def _page(self, after: str) -> Any | Retry:
        query = {"limit": str(LIST_PAGE)} | ({"after": after} if after else {})
        async with self._send("GET", "/batches", self.provider.timeout_s, params=query) as response:
            return await self._json(response)

    async def download(self, file: str, path: Path) -> None:
        """Fetch a result file whole: a torn last line counts as not fetched. Raises Lost when it is gone."""

        async def once() -> Path | Retry:
            async with self._send("GET", f"/files/{file}/content", None, allow_redirects=True) as response:
                if response.status != 200:
                    answer = await self._json(response)
                    return answer if isinstance(answer, Retry) else Retry(f"HTTP {response.status}")
                with open(path, "wb") as sink:  # noqa: ASYNC230 (a megabyte at a time)
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        sink.write(chunk)
            return path if _whole(path) else Retry("the file was cut off")

        await self._persist(f"GET /files/{file}/content", once)

    async def discard(self, file: str) -> None:
        """Delete a file: what an account keeps is limited, and no batch can be made of it any more."""

        async def once() -> Any | Retry:
            async with self._send("DELETE", f"/files/{file}", self.provider.timeout_s) as response:
                return await self._json(response)

        try:
            await self._persist(f"DELETE /files/{file}", once)
        except (Lost, ProviderStopped):  # gone already, or this provider keeps what it has
            return

    # ---------------------------------------------------------------- sending

    @asynccontextmanager
    async def _send(self, method: str, path: str, seconds: float | None, **options: Any) -> AsyncIterator[Any]:
        assert self._session is not None, "entered"
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=30, sock_read=seconds or self.provider.timeout_s)
        given: dict[str, Any] = {"allow_redirects": False, "timeout": timeout} | options
        async with self._session.request(method, self._base + path, **given) as response:
            yield response

    async def _json(self, response: aiohttp.ClientResponse) -> Any | Retry:
        """The body of a good answer, or why to try again."""
        raw, status = await response.read(), response.status
        said = self._hidden(message(raw))
        if status in (200, 201):
            try:
                return orjson.loads(raw)
            except orjson.JSONDecodeError:  # a proxy's page, or an answer cut off
                return Retry(f"no JSON in the answer: {said}")
        if status == 404:
            raise Lost(said)
        if status == 413:
            raise TooLarge(said)
        if status in (405, 501):
            raise self._no_batches()
        if status == 429 and "insufficient_quota" in said:
            status = 402
        if status in MEND:
            hint = MEND[status].format(secret=self.provider.secret_named, model="")
            raise ProviderStopped(f"{self.provider.named} answered {status}: {hint}. It said: {said}")
        if status in (408, 409, 429) or status >= 500:
            return Retry(f"HTTP {status}: {said}", retry_after_s(response.headers.get("Retry-After")), status == 429)
        raise ProviderStopped(f"{self.provider.named} refused {response.method} {response.url.path}: {status}: {said}")

    async def _persist(self, what: str, once: Callable[[], Awaitable[T | Retry]]) -> T:
        """Call until it is answered, within the provider's patience."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                outcome = await once()
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:  # what another attempt may heal
                outcome = Retry(self._hidden(f"{type(error).__name__}: {error}"))
            if not isinstance(outcome, Retry):
                return outcome
            tries += 1
            backoff_s = min(BACKOFF_LIMIT_S, self.provider.backoff_s * 2.0**tries) * random.uniform(0.5, 1.0)
            wait_s = outcome.after_s if outcome.after_s is not None else backoff_s
            if time.monotonic() - began + wait_s > self.provider.patience_s:
                raise ProviderDown(
                    f"{self.provider.named}: {what} failed {tries} times, the last time: {outcome.reason}. "
                    "Open batches go on there; start again later and they are taken up."
                )
            await asyncio.sleep(wait_s)

    def _no_batches(self) -> ProviderStopped:
        return ProviderStopped(
            f"{self.provider.named} has no batch API ({self._base}/files and /batches are not there): take "
            f"batch = true out of [providers.{self.provider.name}] in the profile, or correct its base_url"
        )

    def _hidden(self, text: str) -> str:
        """`text` without the key, short."""
        return (text.replace(self._key, "(secret)") if self._key else text)[:300]


def _whole(path: Path) -> bool:
    """Whether a JSONL file ends where a line ends (the last newline may be missing)."""
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - LONGEST_LINE_BYTES))
        tail = stream.read()
    if not tail or tail.endswith(b"\n"):
        return True
    try:
        orjson.loads(tail.rpartition(b"\n")[2])
    except orjson.JSONDecodeError:  # torn
        return False
    return True
