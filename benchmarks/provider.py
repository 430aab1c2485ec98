"""A provider that costs next to nothing: raw HTTP/1.1 on an asyncio protocol, one canned completion, rate limits.

`python -m benchmarks.provider LIMITS LATENCY_S` (LIMITS: JSON of serving.limits.Limits) prints its URL and ends when
standard input does. GET /counts: accepted and limited requests by tenth of a second since the first one.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import orjson

from serving.limits import TOO_MANY, Limiter, Limits

COMPLETION = orjson.dumps(
    {
        "id": "canned",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "I am so sorry. That must have hurt. I am here for you."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 150, "completion_tokens": 14, "total_tokens": 164},
    }
)


def response(status: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One HTTP/1.1 response that keeps the connection."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


ANSWER = response("200 OK", COMPLETION)


class State:
    """What all connections share."""

    def __init__(self, limits: Limits, latency_s: float):
        self.limiter, self.latency_s = Limiter(limits), latency_s
        self.began: float | None = None
        self.tenths: list[list[int]] = []

    def judge(self, now: float) -> bytes | None:
        """The refusal, or None."""
        self.began = now if self.began is None else self.began
        tenth = int((now - self.began) * 10)
        while len(self.tenths) <= tenth:
            self.tenths.append([0, 0])
        wait_s = self.limiter.wait_s(now)
        self.tenths[tenth][wait_s > 0] += 1
        return response("429 Too Many Requests", TOO_MANY, self.limiter.headers(wait_s)) if wait_s else None


class Connection(asyncio.Protocol):
    """One client connection: requests one after another."""

    def __init__(self, state: State):
        self._state, self._loop, self._read = state, asyncio.get_running_loop(), b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            at = head.find(b"content-length:")
            size = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._read) < end + 4 + size:
                return
            self._read = self._read[end + 4 + size :]
            self._answer(head.startswith(b"get"))

    def _answer(self, counts: bool) -> None:
        if counts:
            told = {"tenths": self._state.tenths, "cpu_s": time.process_time()}
            self._transport.write(response("200 OK", orjson.dumps(told)))
        elif refusal := self._state.judge(self._loop.time()):
            self._transport.write(refusal)
        else:
            self._loop.call_later(self._state.latency_s, self._write)

    def _write(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def serve(limits: Limits, latency_s: float) -> None:
    state = State(limits, latency_s)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(os.read, 0, 1)
    os._exit(0)


@contextmanager
def provider(limits: Limits, latency_s: float) -> Iterator[str]:
    """The URL of one as a child process."""
    command = [sys.executable, "-m", "benchmarks.provider", orjson.dumps(asdict(limits)).decode(), str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.terminate()


def counts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as answered:
        found: dict[str, Any] = orjson.loads(answered.read())
        return found


if __name__ == "__main__":
    asyncio.run(serve(Limits(**orjson.loads(sys.argv[1])), float(sys.argv[2])))
