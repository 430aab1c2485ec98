"""The endpoint's server on a socket: uvicorn and the gateway over a backend in this process. Nobody holds it up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from serving.endpoint import HttpOptions, Server
from serving.gateway import Gateway

KEY = "correct horse battery"
HEAD_WAIT_S = 1.0
ODD = 'meta-llama/Any 8B é "?#%2F'
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"


class Backend:
    names = ("tuned", ODD)

    async def healthy(self) -> bool:
        return True

    async def answer(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield 200
        yield {"model": body["model"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(Gateway(Backend(), KEY), HttpOptions(port=0, head_wait_s=HEAD_WAIT_S))
    yield server.url
    server.stop()


def connect(url: str, sent: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(sent.encode())
    return connection


def closed_after_s(connection: socket.socket, began: float) -> float:
    """Seconds until the server closes; fails when it does not within half a minute more."""
    connection.settimeout(HEAD_WAIT_S + 30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:  # closed all the same
        pass
    return time.monotonic() - began


def chat(url: str, model: str = "tuned") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize("half", ["", "PO", HEAD])
def test_two_hundred_half_sent_requests_are_closed_and_harm_nobody(url: str, half: str) -> None:
    with ExitStack() as ends, ThreadPoolExecutor(200) as pool:
        began = time.monotonic()
        slow = [ends.enter_context(connect(url, half)) for _ in range(200)]
        closed = [pool.submit(closed_after_s, connection, began) for connection in slow]
        assert [chat(url).status_code for _ in range(20)] == [200] * 20
        waited = [future.result() for future in closed]
    assert min(waited) >= HEAD_WAIT_S * 0.9
    assert max(waited) <= HEAD_WAIT_S + 25
    assert chat(url).status_code == 200


def test_a_head_that_drips_is_closed_too(url: str) -> None:
    began = time.monotonic()
    with connect(url, HEAD) as connection:
        while time.monotonic() < began + HEAD_WAIT_S + 25:
            time.sleep(0.1)
            try:
                connection.sendall(b"X-Drip: 1\r\n")
            except (ConnectionResetError, BrokenPipeError):  # what we wait for
                break
    assert HEAD_WAIT_S * 0.9 <= time.monotonic() - began < HEAD_WAIT_S + 25


def test_a_second_request_on_a_connection_must_be_whole_in_time_too(url: str) -> None:
    with connect(url, f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n") as connection:
        assert b"200 OK" in connection.recv(4096)
        began = time.monotonic()
        connection.sendall(b"GET /heal")
        assert HEAD_WAIT_S * 0.9 <= closed_after_s(connection, began) < HEAD_WAIT_S + 25


def test_a_body_may_come_later_than_its_head(url: str) -> None:
    body = json.dumps({"model": "tuned", "messages": [{"role": "user", "content": "hello"}]})
    with connect(url, f"{HEAD}Content-Length: {len(body)}\r\n\r\n") as connection:
        time.sleep(HEAD_WAIT_S + 0.5)
        connection.sendall(body.encode())
        assert b"200 OK" in connection.recv(4096)


def test_without_the_key_the_body_is_not_waited_for(url: str) -> None:
    wrong = HEAD.replace(KEY, "wrong")
    began = time.monotonic()
    with connect(url, f"{wrong}Content-Length: 1000\r\n\r\n") as connection:
        assert b"401" in connection.recv(4096)
        assert closed_after_s(connection, began) < HEAD_WAIT_S


def test_names_of_models_may_hold_anything(url: str) -> None:
    listed = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert [card["id"] for card in listed["data"]] == ["tuned", ODD]
    assert chat(url, ODD).json()["model"] == ODD
    assert chat(url, "meta-llama/another").status_code == 404
