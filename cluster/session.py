"""One Ray for a run: joined when there is one, started when there is none, ended only by who started it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
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


STARTS = 3
"""A busy machine can miss the 30 s that Ray gives its own processes to come up; another try finds it less busy."""


def _start(options: dict[str, Any]) -> None:
    import psutil
    import ray

    ours = set(psutil.Process().children())
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises the bare class here; the text alone tells a slow start
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == STARTS:
                raise
            _end([child for child in psutil.Process().children() if child not in ours])


def _end(processes: list[Any]) -> None:
    """What a failed start leaves running until this process ends: half a Ray, which others would find and join."""
    import psutil

    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


def _warnings(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


_changing, _inside = threading.Lock(), 0


@contextmanager
def ray_session(profile: Profile) -> Iterator[None]:
    """Ray is up inside: the first thread that comes in starts it, the last that goes out ends it. A Ray that somebody
    else started in this process is left alone. RAY_ADDRESS (set in a submitted job) wins over the profile's address."""
    import ray

    global _inside
    with _changing:
        foreign = _inside == 0 and ray.is_initialized()
        if not foreign:
            if _inside == 0:
                _begin(profile)
            _inside += 1
    try:
        yield
    finally:
        if not foreign:
            with _changing:
                _inside -= 1
                if _inside == 0:
                    ray.shutdown()


def _begin(profile: Profile) -> None:
    address = os.environ.get("RAY_ADDRESS") or profile.ray.address
    settings = environment(profile)
    os.environ.update(settings)
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # 30 s is too short for a busy machine
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
    _start(options)
    for name in ("ray.serve", "ray.train"):  # our own progress lines say what happens
        logging.getLogger(name).addFilter(_warnings)  # Serve sets its level when it starts
