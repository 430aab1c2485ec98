"""Start students on a running Ray cluster: the engine as a Serve application, and over it the HTTP endpoint.

The door (`gateway.Gateway` under uvicorn) stands in the process that called `start_engine`, not in Serve's own
proxies: those answer some paths without a key, are shared by everybody's applications, and end a stream silently when
its replica dies.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from serving.bulk import Completion, EngineLost, StudentRequest, Unanswered, generate_all, patiently
from serving.diagnosis import EngineFailed, told
from serving.endpoint import HandleBackend, HttpOptions, Server
from serving.gateway import Gateway
from serving.students import StudentSet

__all__ = [
    "Completion",
    "EngineFailed",
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

STARTING_LOOK_S = 0.5


@dataclass(frozen=True)
class Resources:
    """What Ray sets aside for each replica (an engine), and how many there are.

    On a CPU an engine computes with num_cpus threads (at least one): more threads than free cores are far slower than
    fewer, because they wait for each other in loops.
    """

    replicas: int = 1
    num_cpus: float = 1
    num_gpus: float = 0


class Students:
    """Students that answer. Use as a context manager, or call `stop`. They end with this process, however it ends.

    handle: the Serve DeploymentHandle (`generate_all(students.handle, ...)`). url: of the endpoint, None without one.
    ready: what a replica said of itself: start_s, alive (largest change of a log-probability by adapter), names, pid.
    """

    def __init__(self, app_name: str, in_flight: int):
        from serving import owners

        self.app_name, self.in_flight = app_name, in_flight
        self.handle: Any = None
        self.ready: dict[str, Any] = {}
        self.url: str | None = None
        self._server: Server | None = None
        self._stopped = threading.Event()
        self._owned = owners.own(app_name)

    def generate(self, requests: Any, **options: Any) -> Any:
        """`generate_all` with enough in flight to keep every engine full."""
        return generate_all(self.handle, requests, **{"in_flight": self.in_flight} | options)

    def load(self, adapters: Mapping[str, str], on_loss: Callable[[], None] = lambda: None) -> dict[str, float | str]:
        """Take more students, name -> LoRA folder, while nothing is asked: for `StudentSet.later`, and bulk generation
        only (give `generate` the same `adapters`). By name, how much it changes (as in `ready`), or why it is refused.
        """
        return patiently(
            lambda left_s: self.handle.load.remote(dict(adapters)).result(timeout_s=left_s),
            f"they loaded {', '.join(list(adapters)[:5])}, …",
            on_loss=on_loss,
        )

    def start(self, application: Any) -> None:
        """Deploy, and wait until a replica has proved what it serves. Raises ValueError, EngineFailed or
        EngineLost."""
        from ray import serve

        target = serve.RunTarget(application, self.app_name, route_prefix=None)
        try:
            (self.handle,) = serve.run_many([target], wait_for_applications_running=False)
            self._wait_until_running()
        except RuntimeError as error:
            raise EngineFailed(f"the engine does not start: {_reason(self.app_name, error)}") from None
        self.ready = patiently(lambda left_s: self.handle.ready.remote().result(timeout_s=left_s), "they started")
        if refusal := self.ready["refusal"]:
            raise ValueError(refusal)

    def _wait_until_running(self) -> None:
        """As `serve.run` does, but no longer than until `stop`: a thread that asks Ray after the end of a session ends
        the process (exit code 1, without a word). Raises RuntimeError."""
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        while not self._stopped.wait(STARTING_LOOK_S):
            application = serve.status().applications.get(self.app_name)
            if application is not None and application.status == ApplicationStatus.RUNNING:
                return
            if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
                raise RuntimeError(f"deploying application {self.app_name} failed: {application.message}")
        raise RuntimeError("it was ended while it started")

    def open(self, students: StudentSet, http: HttpOptions, key: str) -> None:
        backend = HandleBackend(self.handle, students.names, http.request_timeout_s)
        self._server = Server(Gateway(backend, key, http.limits, http.disclosure), http)
        self.url = self._server.url

    def wait(self) -> None:
        """Block for as long as the endpoint stands."""
        if self._server is not None:
            self._server.join()

    def stop(self) -> None:
        """End the endpoint and the engine; Serve itself and other applications stay."""
        import ray
        from ray import serve

        from serving import owners

        self._stopped.set()
        if self._server is not None:
            self._server.stop()
        if ray.is_initialized():  # else we have left the cluster, and what was ours goes by itself
            serve.delete(self.app_name)
            owners.disown(self._owned)

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
    begun: Callable[[Students], object] = lambda running: None,
) -> Students:
    """Start the engine; with `http`, open the endpoint too. `begun` is given the Students before they are up: another
    thread may `stop` them meanwhile.

    Ray must be initialised. Raises ValueError, naming field and remedy, for a missing key, a bad base, an adapter that
    does not fit or changes nothing, a template that renders otherwise than at training, an engine that its options
    cannot start; EngineFailed, with the engine's own reason, when it could not be started otherwise, and EngineLost
    when it dies as soon as it is up.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        raise RuntimeError("ray is not initialised: call ray.init() first; start_engine joins the caller's cluster")
    key = http.read_key() if http else ""  # before anything is started
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its import sets INFO; our callers say what happens
    serve.start(proxy_location="Disabled")  # no effect where Serve already runs
    # Never another driver's application, even of the same students: whoever started it may end it at any time.
    name = f"students-{students.digest}-{secrets.token_hex(4)}"
    running = Students(name, 2 * students.max_num_seqs * resources.replicas)
    try:
        begun(running)
        most = http.limits.max_new_tokens if http else None
        running.start(_deployment(students, resources, http).bind(students, max(1, int(resources.num_cpus)), most))
        if http:
            running.open(students, http, key)
    except BaseException:  # nothing that was refused stays up
        running.stop()
        raise
    return running


def _reason(app_name: str, error: RuntimeError) -> str:
    """What a replica died of, from Serve's status; what Serve said, where no replica told."""
    from ray import serve

    application = serve.status().applications.get(app_name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    reasons = [reason for message in messages if (reason := told(message))]
    return reasons[-1] if reasons else "; ".join([str(error), *(m[-500:] for m in messages if m)])


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
