"""One Ray for a run: joined when there is one, started when there is none, ended only by who started it."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.profile import Profile


def environment(profile: Profile) -> dict[str, str]:
    """Variables of every worker: places and switches, never secrets."""
    from empathy.files import environment as storage

    return {
        "DS_ACCELERATOR": "cuda" if profile.train.gpus_per_worker else "cpu",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DATA_LOG_LEVEL": "WARNING",  # its loggers are set up late, from this; our own lines say how far it is
        **(storage(**profile.store_options) if profile.store_options else {}),
    }


Say = Callable[[str], None]
STARTS = 3
"""A busy machine can miss the 30 s that Ray gives its own processes to come up; another try finds it less busy."""


class RayDownError(ConnectionError):
    """Ray does not come up on this machine now."""


def _start(options: dict[str, Any], say: Say) -> None:
    import psutil
    import ray

    ours = set(psutil.Process().children())
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises the bare class here; the text alone tells a slow start
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if attempt == STARTS:
                raise RayDownError(
                    f"Ray did not start in {STARTS} tries of half a minute: this machine is too busy (load "
                    f"{os.getloadavg()[0]:.0f}). Nothing was lost: run the same command again when less runs here"
                ) from error
            say(f"Ray did not start within half a minute (the machine is busy): try {attempt + 1} of {STARTS}")
            _end([child for child in psutil.Process().children() if child not in ours])


def _end(processes: list[Any]) -> None:
    """What a failed start leaves running until this process ends: half a Ray, which others would find and join."""
    import psutil

    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


QUIET = (
    "Token authentication is enabled",  # what we want; Ray says it at each start
    "will not be considered for future requests because it has died",  # `cluster.steps.generating` says it in words
)
TOLD = re.compile(
    r"A worker died or was killed while executing a task|Task .* will be retried"
    r"|WARNING: \d+ PYTHON worker processes have been started",
    re.DOTALL,
)
"""Ray's word on every process that ends, engines that we end included: those that matter are told by who waits for
them (`Progress.lost`). And its alarm where more workers come up than the machine has cores, as `ray.cpus` wants it."""


def _worth_telling(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and not any(text in record.getMessage() for text in QUIET)


def _relay(data: Any, ignore_prefix: bool = False) -> None:
    """Errors that Ray publishes to its drivers, such as a machine without memory: the first sentence of each, on
    standard error, not a page of advice on standard output, where the report goes."""
    for line in data["lines"]:
        if not TOLD.match(line):
            print(f"Ray: {line.partition('. ')[0].strip()}", file=sys.stderr, flush=True)


def _quieten() -> None:
    """Ray's own lines, cut down to what a user can use. Workers' output is not among them (`log_to_driver`)."""
    from ray._private import worker

    worker.print_to_stdstream = _relay  # there is no other way to its published errors
    for name in ("ray._private.authentication.authentication_token_setup", "ray.serve", "ray.train"):
        logging.getLogger(name).addFilter(_worth_telling)  # Serve sets its level when it starts


_changing, _inside = threading.Lock(), 0


@contextmanager
def ray_session(profile: Profile, say: Say = lambda line: None) -> Iterator[None]:
    """Ray is up inside: the first thread that comes in starts it, the last that goes out ends it. A Ray that somebody
    else started in this process is left alone. RAY_ADDRESS (set in a submitted job) wins over the profile's address.
    `say` hears of tries in vain; raises RayDownError after the last."""
    # Read when Ray is imported. Else a thread that still asks Ray something after its end starts another one.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    global _inside
    with _changing:
        foreign = _inside == 0 and ray.is_initialized()
        if not foreign:
            if _inside == 0:
                _begin(profile, say)
            _inside += 1
    try:
        yield
    finally:
        if not foreign:
            with _changing:
                _inside -= 1
                if _inside == 0:
                    ray.shutdown()


def starting(profile: Profile) -> str:
    """What is said before a session."""
    address = _address(profile)
    return "Ray starts on this machine" if address == "local" else f"Ray at {address} is joined"


def joins_others(profile: Profile) -> bool:
    """Whether this Ray is a cluster that others may use too."""
    return _address(profile) != "local"


def _address(profile: Profile) -> str:
    return os.environ.get("RAY_ADDRESS") or profile.ray.address


def _begin(profile: Profile, say: Say) -> None:
    address = _address(profile)
    settings = environment(profile)
    os.environ.update(settings)
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # 30 s is too short for a busy machine
    # Ray's C++ writes to the driver's standard error too, e.g. at each start of Ray Data's actors that they might not
    # come back. What goes wrong reaches us as exceptions; "info" brings the logs of its daemons back.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {
        "address": address,
        "runtime_env": {"env_vars": settings},
        "logging_level": logging.WARNING,
        "log_to_driver": False,  # what workers print stays in Ray's logs, also in a job, where our lines would drown
    }
    if address == "local":
        options |= {
            "num_cpus": profile.ray.cpus,
            "object_store_memory": int(profile.ray.object_store_gib * 2**30),
            "include_dashboard": False,
        }
    _quieten()
    _start(options, say)
