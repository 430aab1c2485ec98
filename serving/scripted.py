"""The embedded teacher and judge: rules behind a real OpenAI-shaped HTTP server on loopback. A stand-in, and called
one.

`python -m serving.scripted --port 0` prints its URL; `with Scripted() as server: server.url` runs one as a child
process. For tests it can be slow, limit, fail and lie (`Faults`), and it counts what it was asked (GET /counts).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal

import orjson
from aiohttp import web

from empathy.records import Turn
from serving.limits import TOO_MANY, Limiter, Limits
from serving.rules import judge, teacher

MODELS = {teacher.NAME: teacher.reply, judge.NAME: judge.reply}
Fault = Literal[
    "", "400", "401", "402", "403", "429", "500", "529", "hang", "drip", "reset", "html", "broken", "no_choices",
    "empty", "length", "refusal", "content_filter", "other_model", "dated_model",
]  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """`fault` befalls the first `first` attempts (0: every one) of a `share` of distinct requests. Replies take
    `latency_s`."""

    latency_s: float = 0.0
    fault: Fault = ""
    share: float = 1.0
    first: int = 1
    retry_after: str = "0.2"
    echo_key: bool = False
    """Send the caller's key back in every reply, as careless servers do."""
    limits: Limits = field(default_factory=Limits)
    """Requests beyond it get a 429 at once."""

    @staticmethod
    def read(raw: bytes | str) -> Faults:
        """From JSON."""
        fields: dict[str, Any] = orjson.loads(raw)
        return Faults(**fields | {"limits": Limits(**fields.get("limits", {}))})


class Engine:
    """The server's state: what was asked, how often, and when its reply was sent to the last byte."""

    def __init__(self, faults: Faults):
        self.begin(faults)

    def begin(self, faults: Faults) -> None:
        self.faults, self.limiter = faults, Limiter(faults.limits)
        self.asked: Counter[str] = Counter()
        self.finished: list[tuple[str, float]] = []
        self.in_flight = self.most_in_flight = self.keys_seen = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/counts", self.counts)
        app.router.add_put("/faults", self.reset)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    async def counts(self, request: web.Request) -> web.Response:
        """`asked`: times by request id; `finished`: [request id, unix time] of replies with status 200, sent to the
        end."""
        total, distinct = sum(self.asked.values()), len(self.asked)
        numbers = {
            "total": total,
            "distinct": distinct,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "keys_seen": self.keys_seen,
        }
        return _json(numbers | {"asked": self.asked, "finished": self.finished})

    async def reset(self, request: web.Request) -> web.Response:
        """New faults, and counting begins anew."""
        self.begin(Faults.read(await request.read()))
        return _json({})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body = orjson.loads(await request.read())
            ident = request_id(body)
            messages, model = tuple(Turn(m["role"], m["content"]) for m in body["messages"]), str(body["model"])
            if model not in MODELS:
                said = f"model = {model!r} is not here: these rules are {' and '.join(MODELS)}; name one of them"
                return _json({"error": {"code": "model_not_found", "message": said}}, 404)
            text = MODELS[model](messages)
        except (ValueError, KeyError, TypeError) as error:  # not a chat, or no prompt of our judges
            return _json({"error": {"code": "bad_request", "message": f"not a chat request: {error!r}"}}, 400)
        secret = request.headers.get("Authorization", "")
        self.keys_seen += bool(secret)
        self.asked[ident] += 1
        if wait_s := self.limiter.wait_s(time.monotonic()):
            return _json(TOO_MANY, 429, self.limiter.headers(wait_s))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self._fault(ident)
            await asyncio.sleep(self.faults.latency_s if fault != "hang" else 3600)
            status, headers, raw = faulty(fault, self.faults, completion(ident, body, text))
            if self.faults.echo_key:
                raw = raw.replace(b"try again later", b"your " + secret.encode()).replace(b"dog", secret.encode())
            try:
                response = await _send(request, status, headers, raw, fault)
            except ConnectionResetError:  # the client is gone: nobody to tell
                return web.Response(status=499)
            if status == 200:
                self.finished.append((ident, time.time()))
            return response
        finally:
            self.in_flight -= 1

    def _fault(self, ident: str) -> Fault:
        hit = int(ident[:8], 16) / 16**8 < self.faults.share
        early = not self.faults.first or self.asked[ident] <= self.faults.first
        return self.faults.fault if hit and early else ""


def request_id(body: dict[str, Any]) -> str:
    """Identity of a request's body, whatever the order of its fields."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]


def completion(ident: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    """The OpenAI shape. Tokens are counted as words, which is what these rules work in."""
    words = text.split()
    cut = len(words) > body.get("max_tokens", len(words))
    if cut:
        words = words[: body["max_tokens"]]
        text = " ".join(words)
    tokens_in = sum(len(m["content"].split()) for m in body["messages"])
    return {
        "id": f"rules-{ident[:12]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": len(words), "total_tokens": tokens_in + len(words)},
    }


def faulty(fault: Fault, faults: Faults, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a reply that `fault` has befallen."""
    if fault.isdigit():
        errors = {
            "400": "the content was blocked by our policy",
            "401": "Incorrect API key provided",
            "402": "balance exhausted",
        }
        headers = {"Retry-After": faults.retry_after} if fault == "429" else {}
        return (
            int(fault),
            headers,
            orjson.dumps({"error": {"code": fault, "message": errors.get(fault, "try again later")}}),
        )
    choice = body["choices"][0]
    match fault:
        case "html":
            return 200, {"Content-Type": "text/html"}, b"<html><body>502 Bad Gateway</body></html>"
        case "no_choices":
            body["choices"] = []
        case "empty":
            choice["message"]["content"] = ""
        case "length":
            choice["message"]["content"], choice["finish_reason"] = choice["message"]["content"][:20], "length"
        case "refusal":
            choice["message"] |= {"content": None, "refusal": "I cannot help with that."}
        case "content_filter":
            choice["message"]["content"], choice["finish_reason"] = "", "content_filter"
        case "other_model":
            body["model"] = "some-other-model"
        case "dated_model":
            body["model"] += "-2024-08-06"
    raw = orjson.dumps(body)
    return 200, {}, raw[: len(raw) // 2] if fault == "broken" else raw


async def _send(
    request: web.Request, status: int, headers: dict[str, str], raw: bytes, fault: Fault
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"} | headers)
    if fault == "reset":
        assert request.transport is not None
        request.transport.abort()
    response.content_length = len(raw)
    await response.prepare(request)
    if fault == "drip":
        for byte in raw:
            await response.write(bytes([byte]))
            await asyncio.sleep(1.0)
    await response.write(raw)
    await response.write_eof()
    return response


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return web.Response(body=raw, status=status, content_type="application/json", headers=headers)


class Scripted:
    """The server as a child process; it also ends when its parent does, however that ends."""

    def __init__(self, faults: Faults | None = None, port: int = 0, host: str = "127.0.0.1"):
        self.faults, self.url = faults or Faults(), ""
        options = {"port": str(port), "host": host, "faults": orjson.dumps(asdict(self.faults)).decode()}
        self._options = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Scripted:
        command = [sys.executable, "-m", "serving.scripted", *self._options, "--with-parent"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            raise OSError(
                f"the embedded teacher did not start (exit code {self._process.wait()}); its message is above"
            )
        return self

    def counts(self) -> dict[str, Any]:
        """What the server was asked so far; see `Engine.counts`."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/counts") as response:
            found: dict[str, Any] = orjson.loads(response.read())
            return found

    def reset(self, faults: Faults) -> Scripted:
        """Go on with other faults; counting begins anew."""
        body = orjson.dumps(asdict(faults))
        request = urllib.request.Request(self.url.removesuffix("/v1") + "/faults", data=body, method="PUT")
        urllib.request.urlopen(request).close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


async def serve(port: int, host: str, faults: Faults, with_parent: bool) -> None:
    """Serve until killed; `with_parent`: or until standard input ends."""
    runner = web.AppRunner(Engine(faults).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    bound = runner.addresses[0][1]
    print(f"http://{host}:{bound}/v1", flush=True)
    if with_parent:
        await asyncio.to_thread(os.read, 0, 1)
        os._exit(0)  # hanging handlers would hold up a gentle end
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--faults", default="{}", help="JSON of Faults")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.host, Faults.read(options.faults), options.with_parent))


if __name__ == "__main__":
    main()
