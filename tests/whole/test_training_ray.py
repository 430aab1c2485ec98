"""The same stages under Ray Train, as two plain processes and as one: equal losses, whatever is killed on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from empathy.stages import Stage
from empathy.store import Store
from empathy.train import launch, session
from empathy.train.placement import Placement
from tests.lessons import chain, losses, side_by_side, weights
from tests.training_job import PLACEMENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_S = 500


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Stage]]:
    """The chain by two plain processes, never disturbed."""
    store = Store.open(str(tmp_path_factory.mktemp("plain") / "store"))
    stages = chain(store, epochs=6)
    launch.run(stages, store.url, {}, PLACEMENT)
    return store, stages


def trained(stages: list[Stage]) -> list[Stage]:
    return [s for s in stages if s.kind == "checkpoint"]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, f"the job ended with {process.returncode} before it could be killed"
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def saved(store: Store, stage: Stage) -> bool:
    """Whether a checkpoint of this training is in the store, and the training is not finished."""
    return any(p.endswith(".json") for p in store.files.list(f"progress/{stage.key}"))


@contextmanager
def job(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose descendants (Ray's too) are gone afterwards."""
    process = subprocess.Popen([sys.executable, "-m", *command])
    family: set[psutil.Process] = set()
    try:
        yield process
        family |= set(psutil.Process(process.pid).children(recursive=True)) if process.poll() is None else set()
    finally:
        if process.poll() is None:
            family |= set(psutil.Process(process.pid).children(recursive=True))
        for one in (*family, process):
            if isinstance(one, psutil.Process) and not one.is_running():
                continue
            one.kill()
        process.wait()


def ray_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("RayTrainWorker" in word for word in child.cmdline()[:1]):
                found.append(child)
        except psutil.NoSuchProcess:
            pass  # it ended while we looked
    return found


def test_two_processes_train_what_one_does(plain: tuple[Store, list[Stage]], tmp_path: Path) -> None:
    store, stages = plain
    alone = Store.open(str(tmp_path / "store"))
    session.run(chain(alone, epochs=6), alone, Placement(device="cpu", threads=1))
    for stage in trained(stages):
        assert losses(alone, stage) == pytest.approx(losses(store, stage), abs=1e-5), stage


def test_killed_worker_and_killed_driver_change_nothing(plain: tuple[Store, list[Stage]], tmp_path: Path) -> None:
    """A Ray Train worker is killed while SFT trains (the group starts again), then the driver while DPO does
    (started again by us).
    """
    undisturbed, stages = plain
    store = Store.open(str(tmp_path / "store"))
    _, sft, _, dpo = chain(store, epochs=6)
    command = ["tests.training_job", store.url]
    with job(command) as first:
        wait_for(lambda: saved(store, sft), first)
        victim = ray_workers(first)[-1]
        victim.kill()
        wait_for(lambda: store.done(sft), first)
        workers = ray_workers(first)
        wait_for(lambda: saved(store, dpo), first)
        for worker in workers:  # a small DPO is done in the time that a look at all processes takes
            worker.suspend()
        orphans = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGKILL)
        first.wait()
        for worker in workers:
            worker.kill()
        _, left = psutil.wait_procs(orphans, timeout=60)
        for process in left:
            process.kill()
    assert store.done(sft)
    assert not store.done(dpo)
    with job(command) as second:
        assert second.wait(PATIENCE_S) == 0
    for stage in trained(stages):
        assert losses(store, stage) == losses(undisturbed, stage), stage
        assert weights(store, stage) == weights(undisturbed, stage), stage
    assert not saved(store, dpo)


def test_two_groups_train_side_by_side_and_a_killed_worker_takes_only_its_own_along(tmp_path: Path) -> None:
    undisturbed, store = (Store.open(str(tmp_path / name)) for name in ("undisturbed", "store"))
    session.run(side_by_side(undisturbed), undisturbed, Placement(device="cpu", threads=1))
    _, *students = side_by_side(store)
    with job(["tests.training_job", store.url, "groups"]) as running:
        wait_for(lambda: sum(saved(store, s) and not store.done(s) for s in students) == 2, running)
        victim, other = ray_workers(running)
        victim.kill()
        wait_for(lambda: sum(store.done(s) for s in students) > 3, running)
        assert other.is_running()
        assert running.wait(PATIENCE_S) == 0
    for student in students:
        assert losses(store, student) == losses(undisturbed, student), student
        assert weights(store, student) == weights(undisturbed, student), student


def test_a_killed_plain_process_ends_the_others_and_the_next_start_goes_on(
    plain: tuple[Store, list[Stage]], tmp_path: Path
) -> None:
    undisturbed, _ = plain
    store = Store.open(str(tmp_path / "store"))
    _, sft, *_ = made = chain(store, epochs=6)
    from empathy.stages import to_json

    (tmp_path / "stages.json").write_text(to_json(made[:2]))
    options = ["--workers", "2", "--device", "cpu", "--threads", "1", "--save-every-steps", "2"]
    with job(["empathy.train", "--store", store.url, "--stages", str(tmp_path / "stages.json"), *options]) as first:
        wait_for(lambda: saved(store, sft), first)
        ranks = psutil.Process(first.pid).children()
        ranks[0].kill()
        assert first.wait(60) == 1
        assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert not store.done(sft)
    launch.run(made[:2], store.url, {}, PLACEMENT)
    assert losses(store, sft) == losses(undisturbed, sft)
    assert weights(store, sft) == weights(undisturbed, sft)
