"""The door of the endpoint: who comes in, by which path, with how much, and what a first reply says about itself.

A plain ASGI application over a `Backend`; it knows neither Ray nor vLLM. Checks on what people and students say to
each other belong between `checked` and the backend.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import quote

from serving.bodies import Json, Limits, Refused, checked, is_first_reply

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DISCLOSURE = "You are talking to an AI, not to a person. It can be wrong and cannot replace human care."
METHODS = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET", "/health": "GET"}
MAX_LENGTH_DIGITS = 18
"""No body has more bytes than so many digits tell, and Python refuses to read a number of thousands."""


class Busy(Exception):
    """The queue is full: come again later."""


class Unavailable(Exception):
    """No replica answers: one died under the request, or none is up."""


class Backend(Protocol):
    """What answers behind the door. Both methods raise Busy or Unavailable."""

    names: tuple[str, ...]

    async def healthy(self) -> bool: ...

    def answer(self, path: str, body: Json) -> AsyncGenerator[Any, None]:
        """First the status (int), then one JSON object or, for a stream, server-sent events (str)."""


class Gateway:
    """The ASGI application. Raises ValueError without a key."""

    def __init__(self, backend: Backend, key: str, limits: Limits | None = None, disclosure: str = DISCLOSURE):
        if not key.strip():
            raise ValueError("api key is empty: the endpoint does not start without one")
        if not disclosure.strip():
            raise ValueError("disclosure is empty: replies must say that they come from an AI")
        self._backend, self._limits = backend, limits or Limits()
        self._credential = f"Bearer {key.strip()}".encode()
        self._disclosure = disclosure
        self._disclosure_header = {"x-ai-disclosure": quote(disclosure, safe=" ,.;:!?'()-/")}
        self._started_s = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"only http is served, not {scope['type']}")
        try:
            self._admit(scope)
            await self._route(scope["path"], scope, receive, send)
        except Refused as refused:
            await _send_json(send, refused.status, refused.body, refused.headers)

    def _admit(self, scope: Scope) -> None:
        """Key first, then path, then method and length: nothing of the body has been read yet."""
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._credential):
            text = "missing or wrong API key: send it as 'Authorization: Bearer KEY'"
            raise Refused(401, text, {"www-authenticate": "Bearer", "connection": "close"})
        method = METHODS.get(scope["path"])
        if method is None:
            raise Refused(404, f"there is no {scope['path']} here, only {', '.join(METHODS)}")
        if scope["method"] != method:
            raise Refused(405, f"{scope['path']} takes {method}", {"allow": method})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(400, "content-length: a whole number of bytes", {"connection": "close"})
        digits = length.lstrip(b"0") or b"0"
        if len(digits) > MAX_LENGTH_DIGITS or int(digits) > self._limits.max_body_bytes:
            raise self._too_large()

    async def _route(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if path == "/health":
            healthy = await self._backend.healthy()
            await _send_json(send, 200 if healthy else 503, {"status": "ok" if healthy else "unavailable"})
        elif path == "/v1/models":
            card = {"object": "model", "created": self._started_s, "owned_by": "empathy"}
            cards = [{"id": name} | card for name in self._backend.names]
            await _send_json(send, 200, {"object": "list", "data": cards})
        else:
            body = checked(path, await self._read(receive), self._backend.names, self._limits)
            await _until_disconnect(self._answer(path, body, send), receive)

    # ---- the request

    def _too_large(self) -> Refused:
        return Refused(413, f"the body may hold at most {self._limits.max_body_bytes} bytes", {"connection": "close"})

    async def _read(self, receive: Receive) -> Json:
        try:
            data = await asyncio.wait_for(self._read_bytes(receive), self._limits.body_wait_s)
        except TimeoutError:
            text = f"the body did not arrive within {self._limits.body_wait_s:g} s"
            raise Refused(408, text, {"connection": "close"}) from None
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object")
        return body

    async def _read_bytes(self, receive: Receive) -> bytes:
        data = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client left before its request was whole")
            data += message.get("body", b"")
            if len(data) > self._limits.max_body_bytes:  # chunked bodies announce no length
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(data)

    # ---- the answer

    async def _answer(self, path: str, body: Json, send: Send) -> None:
        """Pass the answer on. An error before the first byte is a status; after it, an event, and no [DONE] follows."""
        async with aclosing(self._backend.answer(path, body)) as answer:
            await self._pass_on(path, body, answer, send)

    async def _pass_on(self, path: str, body: Json, answer: AsyncGenerator[Any, None], send: Send) -> None:
        headers = self._disclosure_header if is_first_reply(path, body) else {}
        try:
            status = await anext(answer)
            first = await anext(answer)
        except Busy as busy:
            raise Refused(503, f"{busy}; ask again later", self._retry_after()) from None
        except Unavailable as gone:
            raise Refused(503, str(gone), self._retry_after()) from None
        if isinstance(first, dict):
            await _send_json(send, status, self._disclosed(first) if headers and status == 200 else first, headers)
            return
        await _start(send, status, headers | {"content-type": "text/event-stream", "cache-control": "no-cache"})
        await _send_body(send, self._disclosed_event(first) if headers else first, more=True)
        try:
            async for event in answer:
                await _send_body(send, event, more=True)
        except (Busy, Unavailable) as gone:
            await _send_body(send, f"data: {json.dumps(Refused(503, str(gone)).body)}\n\n", more=True)
        await _send_body(send, "", more=False)

    def _retry_after(self) -> dict[str, str]:
        return {"retry-after": str(self._limits.retry_after_s)}

    def _disclosed(self, answer: Json) -> Json:
        return answer | {"metadata": {"ai_disclosure": self._disclosure}}

    def _disclosed_event(self, event: str) -> str:
        answer = json.loads(event.removeprefix("data: "))
        return event if "error" in answer else f"data: {json.dumps(self._disclosed(answer))}\n\n"


async def _until_disconnect(work: Awaitable[None], receive: Receive) -> None:
    """Run `work`; cancel it (and with it the generation) when the client goes away."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        else:
            working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_json(send: Send, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
    data = json.dumps(body).encode()
    await _start(send, status, {"content-type": "application/json", "content-length": str(len(data))} | (headers or {}))
    await send({"type": "http.response.body", "body": data})


async def _start(send: Send, status: int, headers: dict[str, str]) -> None:
    pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _send_body(send: Send, text: str, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
