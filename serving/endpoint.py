"""The endpoint: the gateway under uvicorn in a thread of this process, over a Serve handle."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from serving.bodies import Json, Limits
from serving.gateway import DISCLOSURE, Backend, Busy, Gateway, Unavailable

KEEP_ALIVE_S = 5


@dataclass(frozen=True)
class HttpOptions:
    """The endpoint. Its key comes from the environment variable `key_env`, or from the file `key_file` when given.

    port 0 takes a free one. max_queued: requests that wait when every engine is full; one more gets 503, Retry-After.
    head_wait_s: a connection that has not sent its request's head by then is closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_env: str = "EMPATHY_API_KEY"
    key_file: str | None = None
    max_queued: int = 64
    max_connections: int = 1024
    head_wait_s: float = 10.0
    request_timeout_s: float = 600.0
    disclosure: str = DISCLOSURE
    limits: Limits = field(default_factory=Limits)

    def read_key(self) -> str:
        """Raises ValueError, never showing the key, when there is none."""
        if self.key_file is not None:
            path = Path(self.key_file)
            key = path.read_text().strip() if path.is_file() else ""
            place, remedy = f"key_file = {self.key_file}", "write the key into it (chmod 600)"
        else:
            key = os.environ.get(self.key_env, "").strip()
            place, remedy = f"key_env = {self.key_env}", "set that environment variable"
        if not key:
            raise ValueError(f"{place} holds no API key: {remedy}; the endpoint does not start without one")
        return key


class HandleBackend:
    """The gateway's backend: a Serve handle."""

    def __init__(self, handle: Any, names: tuple[str, ...], timeout_s: float):
        self.names = names
        self._handle, self._timeout_s = handle, timeout_s

    async def healthy(self) -> bool:
        """Serve's own word for it: a full queue is no illness, and would hold up a question put to the replica."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(self._handle.app_name)
        return application is not None and application.status == "RUNNING"

    async def answer(self, path: str, body: Json) -> AsyncGenerator[Any, None]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        response = self._handle.options(stream=True).http.remote(path, body)
        deadline = time.monotonic() + self._timeout_s
        try:
            while True:
                yield await asyncio.wait_for(anext(response), deadline - time.monotonic())
        except StopAsyncIteration:
            return
        except BackPressureError:
            raise Busy("the queue is full") from None
        except RayActorError:
            raise Unavailable("the engine died while it answered; ask again") from None
        except TimeoutError:
            response.cancel()
            raise Unavailable(f"no answer within {self._timeout_s:g} s") from None
        except (asyncio.CancelledError, GeneratorExit):  # the client left: the engine need not go on
            response.cancel()
            raise


class Server:
    """uvicorn in a thread of this process, on a socket that is bound before it starts."""

    def __init__(self, gateway: Gateway, http: HttpOptions):
        import uvicorn

        self._socket = socket.create_server((http.host, http.port), backlog=512)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        config = uvicorn.Config(
            gateway,
            http=head_within(http.head_wait_s),
            access_log=False,
            log_level="warning",
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=http.max_connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="endpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def head_within(wait_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, closing connections whose next request's head takes longer than `wait_s`.

    uvicorn bounds only the silence between two requests: heads that drip, or stop half way, would stay for ever.
    """

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _closing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:  # a whole head: a request is being answered
                self._forget()
            elif self._closing is None:
                self._closing = self.loop.call_later(wait_s, self.transport.abort)

        def _forget(self) -> None:
            if self._closing is not None:
                self._closing.cancel()
                self._closing = None

    return Bounded


_: type[Backend] = HandleBackend  # the type checker compares them here
