"""A Ray that was too slow to start: what is left of it ends before the next try."""

from __future__ import annotations

import subprocess
from typing import Any

import psutil
import pytest
import ray

from cluster import session
from cluster.profile import Profile


def test_a_failed_start_leaves_no_process_and_ends_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def slow(**options: Any) -> None:
        begun.append(subprocess.Popen(["sleep", "60"]))
        if len(begun) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", slow)
    with subprocess.Popen(["sleep", "60"]) as other:
        session._start({})
        alive = [psutil.pid_exists(p.pid) and psutil.Process(p.pid).status() != "zombie" for p in [*begun, other]]
        for process in (begun[-1], other):
            process.kill()
            process.wait()
    assert alive == [False, False, True, True]


def test_another_error_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError("no cluster at this address")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match="no cluster"):
        session._start({})


def test_the_first_that_comes_in_starts_ray_and_the_last_that_goes_out_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: told.append("begun"))
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("ended"))
    outer, inner = session.ray_session(Profile()), session.ray_session(Profile())
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # another thread's block may outlast the one that started Ray
    assert told == ["begun"]
    inner.__exit__(None, None, None)
    assert told == ["begun", "ended"]


def test_somebody_elses_ray_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "init", lambda **options: told.append("begun"))
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("ended"))
    with session.ray_session(Profile()):
        pass
    assert told == []
