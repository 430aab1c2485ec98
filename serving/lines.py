"""One provider in one event loop: its session, its free places, one attempt at a time, and when to stop asking it."""

from __future__ import annotations

import asyncio
from collections import Counter
from urllib.parse import urlsplit

import aiohttp

from empathy.requests import Answer, Request
from serving.providers import Provider, ProviderStopped, Retry, announced_limit, read_reply
from serving.rates import Limit

MOST_BYTES = 8 << 20
"""No completion is longer; the ledger's lines must be shorter than 64 MiB."""
SHORTEST_SECRET = 16
"""A key like "EMPTY" or "test" (servers of one's own want any) is no secret, and is a word that replies may hold."""
REFUSED_AT_FIRST = 20
"""So many rows refused and none answered yet: it is the request that is wrong, not the rows."""
GIVEN_UP_IN_A_ROW = 20
"""So many rows given up and none answered in between: it is not the rows."""


class Line:
    """`places` bounds how many calls are under way or wait for their permit. `heard` says of a model when it last
    answered a question that asks whether it is there, and whether it did so at once; `lost` counts the requests that
    wait to hear of it."""

    def __init__(self, provider: Provider, in_flight: int):
        self.provider = provider
        self.places = asyncio.Semaphore(min(in_flight, provider.in_flight or in_flight))
        self.given_up_in_a_row = self.refused_at_first = 0
        self.answered: set[str] = set()
        """Models that answered a row."""
        self.heard: dict[str, tuple[float, bool]] = {}
        self.lost: Counter[str] = Counter()
        self.listening = asyncio.Lock()
        self.away: dict[str, str] = {}
        """Why a model answers nothing, while it is asked again and again."""
        self.doubted: set[str] = set()
        """Models in whose place another one answered; they are asked one by one until an answer is their own."""
        self.trial = asyncio.Lock()
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

    def judge(self, model: str, answer: Answer, given_up: bool) -> None:
        """Raises ProviderStopped when rows in a row say that no other will be answered either."""
        if answer.refused is None:
            self.answered.add(model)
        self.given_up_in_a_row = self.given_up_in_a_row + 1 if given_up else 0
        if self.given_up_in_a_row >= GIVEN_UP_IN_A_ROW:
            raise ProviderStopped(
                f"{self.provider.named}: {GIVEN_UP_IN_A_ROW} requests in a row were given up, the last one: "
                f"{answer.refused}. A short question is answered there: check whether these are too long for it, or "
                "raise timeout_s."
            )
        if self.answered:
            self.refused_at_first = 0
        elif answer.refused is not None and not given_up:
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
