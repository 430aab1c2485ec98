"""A Ray that was too slow to start: what is left of it ends before the next try."""

from __future__ import annotations

import logging
import subprocess
from typing import Any

import psutil
import pytest
import ray

from cluster import session
from cluster.profile import Profile


def test_a_failed_start_leaves_no_process_and_ends_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, said = list[subprocess.Popen[bytes]](), list[str]()

    def slow(**options: Any) -> None:
        begun.append(subprocess.Popen(["sleep", "60"]))
        if len(begun) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", slow)
    with subprocess.Popen(["sleep", "60"]) as other:
        session._start({}, said.append)
        alive = [psutil.pid_exists(p.pid) and psutil.Process(p.pid).status() != "zombie" for p in [*begun, other]]
        for process in (begun[-1], other):
            process.kill()
            process.wait()
    assert alive == [False, False, True, True]
    assert said == [f"Ray did not start within half a minute (the machine is busy): try {k} of 3" for k in (2, 3)]


def test_a_ray_that_never_starts_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(session.RayDownError, match=r"did not start in 3 tries.*run the same command again"):
        session._start({}, lambda line: None)


def test_another_error_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError("no cluster at this address")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match="no cluster"):
        session._start({}, lambda line: None)


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


def test_rays_errors_are_cut_to_a_sentence_and_deaths_that_we_tell_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    died = "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot, see ..."
    full = "2 Workers (tasks / actors) killed due to memory pressure (OOM). Refer to the documentation ..."
    again = "Task MapWorker(MapBatches(Asker)).submit failed. 3 retries remaining, so it will be retried. Error: ..."
    many = "WARNING: 8 PYTHON worker processes have been started on node: b7 with address: 10.0.0.1. This could be ..."
    session._relay({"lines": [died, many, again, full], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Ray: 2 Workers (tasks / actors) killed due to memory pressure (OOM)\n")


def test_only_warnings_that_a_user_can_use_pass() -> None:
    def passes(level: int, text: str) -> bool:
        return session._worth_telling(logging.LogRecord("ray.serve", level, "", 0, text, None, None))

    assert passes(logging.WARNING, "Deployment 'StudentEngine' has taken more than 30s to initialize.")
    assert not passes(logging.INFO, "Started Serve")
    assert not passes(logging.WARNING, "Token authentication is enabled for this Ray cluster. Set ...")
    assert not passes(
        logging.WARNING, "Replica(id='x') will not be considered for future requests because it has died."
    )


def test_what_a_run_says_of_its_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert session.starting(Profile()) == "Ray starts on this machine"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert session.starting(Profile()) == "Ray at 10.0.0.1:6379 is joined"
