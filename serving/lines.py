"""One provider in one event loop: its session, its free places, one attempt at a time, and the circuit breaker."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

from empathy.requests import Answer, Request
from serving.providers import Provider, ProviderDown, ProviderStopped, Retry, announced_limit, read_reply
from serving.quota import Limit

BREAK_AFTER = 5
"""So many rows in a row without any answer: the provider is down."""
MOST_BYTES = 8 << 20
"""No completion is longer; the ledger's lines must be shorter than 64 MiB."""
SHORTEST_SECRET = 16
"""A key like "EMPTY" or "test" (servers of one's own want any) is no secret, and is a word that replies may hold."""
REFUSED_AT_FIRST = 20
"""So many rows refused and none answered yet: it is the request that is wrong, not the rows."""


class Line:
    """`places` bounds how many calls are under way or wait for their permit."""

    def __init__(self, provider: Provider, in_flight: int):
        self.provider = provider
        self.places = asyncio.Semaphore(min(in_flight, provider.in_flight or in_flight))
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
        secret = self._key is not None and len(self._key) >= SHORTEST_SECRET
        return raw.replace(str(self._key).encode(), b"(secret)") if secret else raw

    async def attempt(self, request: Request, body: bytes) -> tuple[Answer | Retry, Limit | None]:
        """Send once: what came of it, and the limits that the provider told."""
        try:
            async with self.session.post(self.provider.url, data=body, allow_redirects=False) as response:
                raw = await _read(response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:  # what another attempt may heal
            billed = not isinstance(error, aiohttp.ClientConnectorError)
            said = self._hidden(f"{type(error).__name__}: {error}".encode())[:200].decode(errors="replace").rstrip(": ")
            return Retry(said, unknown=billed), None
        outcome = read_reply(self.provider, request, response.status, response.headers, self._hidden(raw))
        return outcome, announced_limit(response.headers)

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


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises ClientPayloadError for one that is too long, before memory is full of it."""
    raw = bytearray()
    async for piece in response.content.iter_any():
        raw += piece
        if len(raw) > MOST_BYTES:
            raise aiohttp.ClientPayloadError(f"the reply is longer than {MOST_BYTES >> 20} MiB")
    return bytes(raw)
