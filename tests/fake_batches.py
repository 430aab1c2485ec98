"""A provider with a batch API, a server in a process of its own: slow, forgetful, careless, and counting what it bills.

Replies are those of the embedded rules, at once (POST /v1/chat/completions) or in batches, so both ways must make the
same artifacts. Result lines always come shuffled, and every fifth one twice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
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
from serving.scripted import MODELS, completion, request_id

Fate = Literal[
    "", "expire", "expire_all", "partial", "lose", "fail", "fail_line", "token_limit", "rows", "row_402",
    "other_model", "cancel", "cancelled", "stuck",
]  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """`fates` befall the first batches in order (all later ones end well). Shares are of control calls."""

    work_s: float = 0.2
    fates: tuple[Fate, ...] = ()
    control_share: float = 0.0
    """Answered with 429, 500 or 503 instead."""
    create_lost_share: float = 0.0
    """Batches that are created, but the connection breaks before the answer."""
    torn_downloads: int = 0
    """So many downloads end in the middle of a line, without the transport noticing."""
    short_downloads: int = 0
    """So many downloads end at a line's end, too early."""
    list_lag_s: float = 0.0
    most_bytes: int = 200_000_000
    most_rows: int = 50_000
    queue_rows: int = 10**9
    """More rows than this in open batches fail with token_limit_exceeded."""
    no_batches: bool = False
    key: str | None = None
    seed: int = 0


@dataclass
class _Batch:
    body: dict[str, Any]
    lines: list[dict[str, Any]]
    fate: Fate
    made_at: float
    done: bool = False
    stuck: list[dict[str, Any]] = field(default_factory=list)


class Provider:
    """The server's state."""

    def __init__(self, faults: Faults):
        self.beginnings = 0
        self.begin(faults)

    def begin(self, faults: Faults) -> None:
        self.faults, self.random = faults, random.Random(faults.seed)
        self.beginnings += 1  # no id comes again
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, _Batch] = {}
        self.calls: Counter[str] = Counter()
        self.numbers = itertools.count()
        self.billed: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.torn, self.short = faults.torn_downloads, faults.short_downloads

    def app(self) -> web.Application:
        app = web.Application(client_max_size=512 << 20, middlewares=[self.careless])
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_delete("/v1/files/{id}", self.delete)
        app.router.add_get("/v1/files/{id}/content", self.content)
        app.router.add_post("/v1/batches", self.create)
        app.router.add_get("/v1/batches", self.list)
        app.router.add_get("/v1/batches/{id}", self.get)
        app.router.add_get("/counts", self.counts)
        app.router.add_put("/faults", self.reset)
        return app

    @web.middleware
    async def careless(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path.startswith("/v1/"):
            if self.faults.key and request.headers.get("Authorization") != f"Bearer {self.faults.key}":
                return _error(401, "Incorrect API key provided")
            batch_call = "completions" not in request.path
            if batch_call and self.faults.no_batches:
                return _error(404, "Invalid URL")
            if batch_call and self.random.random() < self.faults.control_share:
                status = self.random.choice((429, 500, 503))
                return _error(status, "try again later", {"Retry-After": "0.02"} if status == 429 else {})
        self.calls[f"{request.method} {'/'.join(request.path.split('/')[:3])}"] += 1
        answer: web.StreamResponse = await handler(request)
        return answer

    # ---------------------------------------------------------------- files

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        data = upload.file.read()
        if len(data) > self.faults.most_bytes:
            return _error(413, "file too large")
        ident = f"file-{self.beginnings}-{next(self.numbers):04d}"
        self.files[ident] = data
        return _json({"id": ident, "object": "file", "bytes": len(data), "created_at": int(time.time())})

    async def delete(self, request: web.Request) -> web.Response:
        self.files.pop(request.match_info["id"], None)
        return _json({"deleted": True})

    async def content(self, request: web.Request) -> web.StreamResponse:
        data = self.files.get(request.match_info["id"])
        if data is None:
            return _error(404, "no such file")
        response = web.StreamResponse()  # without a length: nobody sees that it was cut off
        await response.prepare(request)
        if self.torn and data:
            self.torn -= 1
            data = data[: len(data) - 40]
        elif self.short and data:
            self.short -= 1
            data = b"".join(data.splitlines(keepends=True)[:-1])
        await response.write(data)
        await response.write_eof()
        return response

    # ---------------------------------------------------------------- batches

    async def create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["completion_window"] == "24h"
        assert asked["endpoint"] == "/v1/chat/completions"
        if asked["input_file_id"] not in self.files:
            return _error(400, "no such file")
        lines = [orjson.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        assert len({line["body"]["model"] for line in lines}) == 1
        number, now = len(self.batches), time.time()
        fate: Fate = self.faults.fates[number] if number < len(self.faults.fates) else ""
        if len(lines) + sum(len(b.lines) for b in self.batches.values() if not b.done) > self.faults.queue_rows:
            fate = "token_limit"
        body = {
            "id": f"batch-{self.beginnings}-{number:04d}",
            "object": "batch",
            "status": "validating",
            "input_file_id": asked["input_file_id"],
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "created_at": int(now),
            "expires_at": int(now) + 86400,
            "metadata": asked["metadata"],
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        self.batches[body["id"]] = batch = _Batch(body, lines, fate, now)
        self.sizes.append(len(lines))
        if len(lines) > self.faults.most_rows:
            batch.fate = "fail"
        if self.random.random() < self.faults.create_lost_share:
            assert request.transport is not None
            request.transport.abort()
        return _json(body)

    async def get(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None or (batch.fate == "lose" and self._advance(batch)):
            return _error(404, f"No batch found with id {request.match_info['id']!r}")
        self._advance(batch)
        return _json(batch.body)

    async def list(self, request: web.Request) -> web.Response:
        limit, after = int(request.query.get("limit", 20)), request.query.get("after")
        seen = [b for b in self.batches.values() if time.time() - b.made_at >= self.faults.list_lag_s]
        bodies = [b.body for b in reversed(seen) if b.fate != "lose" or not b.done]
        if after:
            bodies = bodies[[b["id"] for b in bodies].index(after) + 1 :]
        return _json({"object": "list", "data": bodies[:limit], "has_more": len(bodies) > limit})

    def _advance(self, batch: _Batch) -> bool:
        """Let time pass for a batch; whether it is done."""
        share = (time.time() - batch.made_at) / self.faults.work_s if self.faults.work_s else 2.0
        if not batch.done and batch.fate != "stuck":
            if share < 1:
                batch.body["status"] = "in_progress" if share > 0.1 else "validating"
                done = int(len(batch.lines) * share) if batch.fate not in ("fail", "fail_line", "token_limit") else 0
                batch.body["request_counts"] = {"total": len(batch.lines), "completed": done, "failed": 0}
            else:
                batch.done = True
                self._end(batch)
        return batch.done

    def _end(self, batch: _Batch) -> None:
        body, fate, lines = batch.body, batch.fate, list(batch.lines)
        if fate in ("fail", "fail_line", "token_limit"):
            body["status"] = "failed"
            fault = {"code": "invalid_request", "message": "the file cannot be read", "line": None}
            if fate == "fail_line":
                fault = {"code": "invalid_json_line", "message": "line 2 is not good", "line": 2}
            elif fate == "token_limit":
                fault = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
            body["errors"] = {"object": "list", "data": [fault]}
            return
        self.random.shuffle(lines)
        half = lines[: len(lines) // 2]
        answered = {"expire": half, "expire_all": [], "partial": half, "cancelled": half}.get(fate, lines)
        good, bad = list[bytes](), list[bytes]()
        for line in lines:
            if line in answered:
                self._answer(line, fate, good, bad)
            elif fate != "partial":
                bad.append(_row(line, None, {"code": "batch_expired", "message": "not executed in time"}))
        good += good[::5]
        self.random.shuffle(good)
        body["status"] = {"expire": "expired", "expire_all": "expired", "cancelled": "cancelled"}.get(fate, "completed")
        body["request_counts"] = {"total": len(lines), "completed": len({*good}), "failed": len(bad)}
        for field_name, rows in (("output_file_id", good), ("error_file_id", bad)):
            body[field_name] = "" if field_name == "error_file_id" else None  # both ways to say none are in the wild
            if rows:
                body[field_name] = f"file-{self.beginnings}-{next(self.numbers):04d}"
                self.files[body[field_name]] = b"\n".join(rows) + b"\n"

    def _answer(self, line: dict[str, Any], fate: Fate, good: list[bytes], bad: list[bytes]) -> None:
        ident = request_id(line["body"])
        kind = int(ident[:2], 16) % 4
        if fate == "row_402" and kind == 0:
            bad.append(_row(line, {"status_code": 402, "body": {"error": {"message": "balance exhausted"}}}))
        elif fate == "rows" and kind < 3:
            status = (429, 500, 400)[kind]
            bad.append(_row(line, {"status_code": status, "body": {"error": {"message": f"row {status}"}}}))
        else:
            self.billed[ident] += 1
            if fate == "lose":
                self.excused[ident] += 1
            reply = answer(line["body"])
            if fate == "other_model":
                reply["model"] = "some-other-model"
            good.append(_row(line, {"status_code": 200, "request_id": "r", "body": reply}))

    # ---------------------------------------------------------------- the rest

    async def complete(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        self.at_once[request_id(body)] += 1
        return _json(answer(body))

    async def counts(self, request: web.Request) -> web.Response:
        return _json(
            {
                "calls": self.calls,
                "billed": self.billed,
                "excused": self.excused,
                "at_once": self.at_once,
                "sizes": self.sizes,
                "statuses": [b.body["status"] for b in self.batches.values()],
                "notes": [b.body["metadata"]["empathy"] for b in self.batches.values()],
                "files": len(self.files),
            }
        )

    async def reset(self, request: web.Request) -> web.Response:
        """Other faults; `forget`: and begin anew."""
        said = orjson.loads(await request.read())
        faults = Faults(**said["faults"] | {"fates": tuple(said["faults"]["fates"])})
        if said["forget"]:
            self.begin(faults)
        else:
            self.faults = faults
        return _json({})


def answer(body: dict[str, Any]) -> dict[str, Any]:
    text = MODELS[body["model"]](tuple(Turn(m["role"], m["content"]) for m in body["messages"]))
    return completion(request_id(body), body, text)


def _row(line: dict[str, Any], response: Any, error: Any = None) -> bytes:
    return orjson.dumps({"id": "row", "custom_id": line["custom_id"], "response": response, "error": error})


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": {"code": str(status), "message": message}}, status, headers)


class FakeBatches:
    """The server as a child process, which also ends when its parent does."""

    def __init__(self, faults: Faults | None = None):
        self.faults, self.url = faults or Faults(), ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FakeBatches:
        command = [sys.executable, "-m", "tests.fake_batches"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        return self.reset(self.faults)

    def reset(self, faults: Faults, forget: bool = True) -> FakeBatches:
        body = orjson.dumps({"faults": asdict(faults), "forget": forget})
        request = urllib.request.Request(self.url.removesuffix("/v1") + "/faults", data=body, method="PUT")
        urllib.request.urlopen(request).close()
        return self

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/counts") as response:
            found: dict[str, Any] = orjson.loads(response.read())
            return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


async def serve() -> None:
    runner = web.AppRunner(Provider(Faults()).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.to_thread(os.read, 0, 1)  # standard input ends with the parent
    os._exit(0)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    asyncio.run(serve())
