"""An HTTP proxy that breaks on purpose, to stand between the store and a real S3 server.

with fault_proxy(server) as proxy:
    proxy.plan(status(503, "SlowDown"), method="PUT", times=3)
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.s3 import Server

Fault = Callable[["Exchange"], None]


@dataclass
class Rule:
    """`fault` for the next `times` requests whose method and path fit."""

    fault: Fault
    method: str
    contains: str
    times: int


@dataclass
class Exchange:
    """One request in the proxy's hands."""

    handler: BaseHTTPRequestHandler
    server: Server

    def body(self) -> bytes:
        return self.handler.rfile.read(int(self.handler.headers.get("Content-Length", 0)))

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server the same, signature and all."""
        upstream = http.client.HTTPConnection(urlsplit(self.server.endpoint).netloc, timeout=60)
        upstream.putrequest(self.handler.command, self.handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.handler.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(self.body())
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        return answer.status, answer.getheaders(), data

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.handler.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length") if self.handler.command == "HEAD" else None
        self.handler.send_header("Content-Length", length or str(len(data)))
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def reset(self) -> None:
        """Close so that the other side sees "connection reset by peer"."""
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.connection.shutdown(socket.SHUT_RD)
        self.handler.connection.close()
        self.handler.close_connection = True


def status(code: int, name: str) -> Fault:
    """S3's error `name` instead of an answer; nothing reaches the server."""

    def fault(exchange: Exchange) -> None:
        exchange.body()
        body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>planned</Message></Error>".encode()
        exchange.answer(
            code, [("Content-Type", "application/xml")], b"" if exchange.handler.command == "HEAD" else body
        )

    return fault


def reset_mid_put(exchange: Exchange) -> None:
    """Half of the body is read, then the connection is reset; nothing reaches the server."""
    exchange.handler.rfile.read(int(exchange.handler.headers.get("Content-Length", 0)) // 2)
    exchange.reset()


def lost_answer(exchange: Exchange) -> None:
    """The server does it, and the client never hears of it."""
    exchange.forward()
    exchange.reset()


def broken_body(exchange: Exchange) -> None:
    """All headers, half of the body, then a reset."""
    code, headers, data = exchange.forward()
    exchange.handler.send_response_only(code)
    for name, value in headers:
        exchange.handler.send_header(name, value)
    exchange.handler.end_headers()
    exchange.handler.wfile.write(data[: len(data) // 2])
    exchange.handler.wfile.flush()
    exchange.reset()


def condition_ignored(exchange: Exchange) -> None:
    """As a server that does not know If-None-Match: the put succeeds. Signed anew, for the header was signed too."""
    bucket, _, key = urlsplit(exchange.handler.path).path.lstrip("/").partition("/")
    exchange.server.client().put_object(Bucket=bucket, Key=key, Body=exchange.body())
    exchange.answer(200, [("ETag", '"0"')], b"")


@dataclass
class Proxy:
    """`endpoint` for clients; `seen` is every (method, path) in order of arrival."""

    endpoint: str
    seen: list[tuple[str, str]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, fault: Fault, method: str, contains: str = "", times: int = 1_000_000) -> None:
        self.rules.append(Rule(fault, method, contains, times))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            for rule in self.rules:
                if rule.times and method == rule.method and rule.contains in path:
                    rule.times -= 1
                    return rule.fault
        return None


@contextmanager
def fault_proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of `server` on a free port, gone after the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            exchange = Exchange(self, server)
            fault = proxy.fault_for(self.command, self.path)
            if fault:
                fault(exchange)
            else:
                exchange.answer(*exchange.forward())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 (http.server's names)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    class Listener(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up on a planned fault is no news."""

    with Listener(("127.0.0.1", 0), Handler) as listener:
        proxy = Proxy(f"http://127.0.0.1:{listener.server_address[1]}")
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield proxy
        listener.shutdown()
        thread.join()
