"""kill -9 of the driver while it asks, trains and generates, of a training worker and of the engine: nothing changes.

One store goes through all of it. What is left in the end must be what the undisturbed run of `finished` made.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from empathy.stages import walk
from tests.cluster import (
    EMPATHY,
    Work,
    assert_same,
    descendants,
    kill_and_wait,
    named,
    outcome,
    profile_file,
    started,
    wait_until,
)
from tests.experiments import tiny_file
from tests.whole.conftest import Finished

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(5400)]

SLOW = """
[ask]
in_flight = 1
[train]
save_every_s = 0.1
[engine]
max_num_seqs = 1
"""
"""Small steps, so that a kill finds something half done; no result may hang on it."""
PATIENCE_S = 150
"""In which what a killed driver started must have ended by itself; Ray's agents look for their head for 60 s."""


@dataclass
class Broken:
    """What was seen on the way. `stayed`: processes that did not end after their driver was killed."""

    work: Work
    stayed: dict[str, list[str]] = field(default_factory=dict)
    log: str = ""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    folder = tmp_path_factory.mktemp("kills")
    work = Work(folder, tiny_file(folder), profile_file(folder, SLOW), str(folder / "store"))
    seen = Broken(work)

    with running(work, "asking") as (process, log):
        wait_until(lambda: begun(work, "replies", "rule-teacher"), process, log, "a part of the teacher's replies")
        kill_driver(process, "asking", seen)

    with running(work, "training") as (process, log):
        workers: list[psutil.Process] = []
        wait_until(lambda: resumable(work), process, log, "a resumable checkpoint")
        workers += named(process.pid, "ray::RayTrainWorker")
        assert len(workers) == 2, log.read_text()
        workers[1].kill()
        wait_until(lambda: done(work, "checkpoint", "tiny base"), process, log, "the base, by a new group of workers")
        kill_driver(process, "training", seen)

    with running(work, "generating") as (process, log):
        wait_until(lambda: bool(engines(process)), process, log, "the engine")
        kill_driver(process, "generating", seen)

    with running(work, "last") as (process, log):
        wait_until(
            lambda: begun(work, "replies", "answers") and bool(engines(process)), process, log, "a student's part"
        )
        for engine in engines(process):
            engine.kill()
        assert process.wait(900) == 0, log.read_text()[-6000:]
        seen.log = log.read_text()
    return seen


@contextmanager
def running(work: Work, name: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = work.folder / f"{name}.log"
    with started(EMPATHY, "run", work.file, *work.where, cwd=work.folder, log=log) as process:
        yield process, log


def kill_driver(process: subprocess.Popen[bytes], name: str, seen: Broken) -> None:
    """kill -9, then see whether its Ray ends with it."""
    below = descendants(process.pid)
    assert below
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen.stayed[name] = [repr(p) for p in kill_and_wait(below, PATIENCE_S)]


def folders(work: Work, kind: str, label: str) -> list[Path]:
    """The folders of the stages of a kind whose label holds `label`."""
    return [Path(work.url) / kind / s.key for s in walk([work.lowered.report]) if s.kind == kind and label in s.label]


def begun(work: Work, kind: str, label: str) -> bool:
    """Whether a part of such a stage is in the store."""
    return any(list((f / "parts").glob("*.json")) for f in folders(work, kind, label))


def done(work: Work, kind: str, label: str) -> bool:
    return any((f / "artifact.json").exists() for f in folders(work, kind, label))


def resumable(work: Work) -> bool:
    return bool(list((Path(work.url) / "progress").glob("*/*.json")))


def engines(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return named(process.pid, "VLLM::EngineCore")


# ---------------------------------------------------------------- what must hold


def test_the_artifacts_are_those_of_the_undisturbed_run(broken: Broken, finished: Finished) -> None:
    """Replies, losses, log-probabilities, verdicts and estimates."""
    assert_same(outcome(broken.work), outcome(finished.work))


@pytest.mark.parametrize("moment", ["asking", "training", "generating"])
def test_a_killed_driver_leaves_no_process_behind(broken: Broken, moment: str) -> None:
    assert broken.stayed[moment] == []


def test_the_last_run_said_nothing_of_a_failure_to_the_user(broken: Broken) -> None:
    assert "Traceback" not in broken.log
    assert "31/31" not in broken.log, "it had less to make than the whole"
