"""Start students on a running Ray cluster: the engine as a Serve application, and over it the HTTP endpoint.

The door (`gateway.Gateway` under uvicorn) stands in the process that called `start_engine`, not in Serve's own
proxies: those answer some paths without a key, are shared by everybody's applications, and end a stream silently when
its replica dies.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.bulk import Completion, EngineLost, StudentRequest, Unanswered, generate_all
from serving.gateway import DISCLOSURE, Backend, Busy, Gateway, Json, Limits, Unavailable
from serving.students import StudentSet

__all__ = [
    "Completion",
    "EngineLost",
    "HttpOptions",
    "Resources",
    "StudentRequest",
    "StudentSet",
    "Students",
    "Unanswered",
    "generate_all",
    "start_engine",
]  # fmt: skip

KEEP_ALIVE_S = 5


@dataclass(frozen=True)
class Resources:
    """What Ray sets aside for each replica (an engine), and how many there are.

    On a CPU an engine computes with num_cpus threads (at least one): more threads than free cores are far slower than
    fewer, because they wait for each other in loops.
    """

    replicas: int = 1
    num_cpus: float = 1
    num_gpus: float = 0


@dataclass(frozen=True)
class HttpOptions:
    """The endpoint. Its key comes from the environment variable `key_env`, or from the file `key_file` when given.

    port 0 takes a free one. max_queued: requests that wait when every engine is full; one more gets 503, Retry-After.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_env: str = "EMPATHY_API_KEY"
    key_file: str | None = None
    max_queued: int = 64
    max_connections: int = 1024
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
            place, remedy = f"key_env = {self.key_env}", "set that environment variable, or give key_file"
        if not key:
            raise ValueError(f"{place} holds no API key: {remedy}; the endpoint does not start without one")
        return key


class Students:
    """Students that answer. Use as a context manager, or call `stop`.

    handle: the Serve DeploymentHandle (`generate_all(students.handle, ...)`). url: of the endpoint, None without one.
    ready: what a replica said of itself: start_s, alive (largest change of a log-probability by adapter), names, pid.
    """

    def __init__(self, app_name: str, handle: Any, ready: dict[str, Any], in_flight: int):
        self.app_name, self.handle, self.ready, self.in_flight = app_name, handle, ready, in_flight
        self.url: str | None = None
        self._server: _Server | None = None

    def generate(self, requests: Any, **options: Any) -> Any:
        """`generate_all` with enough in flight to keep every engine full."""
        return generate_all(self.handle, requests, **{"in_flight": self.in_flight} | options)

    def open(self, students: StudentSet, http: HttpOptions, key: str) -> None:
        backend = HandleBackend(self.handle, students.names, http.request_timeout_s)
        self._server = _Server(Gateway(backend, key, http.limits, http.disclosure), http)
        self.url = self._server.url

    def wait(self) -> None:
        """Block for as long as the endpoint stands."""
        if self._server is not None:
            self._server.join()

    def stop(self) -> None:
        """End the endpoint and the engine; Serve itself and other applications stay."""
        from ray import serve

        if self._server is not None:
            self._server.stop()
        serve.delete(self.app_name)

    def __enter__(self) -> Students:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_engine(
    students: StudentSet,
    *,
    http: HttpOptions | None = None,
    resources: Resources = Resources(),
    app_name: str | None = None,
) -> Students:
    """Start (or, with the same students and resources, find again) the engine; with `http`, open the endpoint too.

    Ray must be initialised. Raises ValueError, naming field and remedy, for a missing key, a bad base, an adapter that
    does not fit or changes nothing, a template that renders otherwise than at training; RuntimeError when the engine
    cannot start.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        raise RuntimeError("ray is not initialised: call ray.init() first; start_engine joins the caller's cluster")
    key = http.read_key() if http else ""  # before anything is started
    name = app_name or f"students-{students.digest}"
    serve.start(proxy_location="Disabled")  # no effect where Serve already runs
    application = _deployment(students, resources, http).bind(students, max(1, int(resources.num_cpus)))
    handle = serve.run(application, name=name, route_prefix=None)
    try:
        ready = handle.ready.remote().result()
        running = Students(name, handle, ready, 2 * students.max_num_seqs * resources.replicas)
        if http:
            running.open(students, http, key)
    except BaseException:  # nothing that was refused stays up
        serve.delete(name)
        raise
    return running


def _deployment(students: StudentSet, resources: Resources, http: HttpOptions | None) -> Any:
    from ray import serve

    from serving.engine import StudentEngine

    return serve.deployment(
        StudentEngine,
        name="StudentEngine",
        num_replicas=resources.replicas,
        ray_actor_options={"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        max_ongoing_requests=2 * students.max_num_seqs,
        max_queued_requests=http.max_queued if http else -1,
        health_check_period_s=1,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
    )


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


class _Server:
    """uvicorn in a thread of this process, on a socket that is bound before it starts."""

    def __init__(self, gateway: Gateway, http: HttpOptions):
        import uvicorn

        self._socket = socket.create_server((http.host, http.port), backlog=512)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        config = uvicorn.Config(
            gateway,
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


_: type[Backend] = HandleBackend  # the type checker compares them here
