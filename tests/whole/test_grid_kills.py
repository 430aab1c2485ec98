"""The smallest grid that is one, killed at ten random moments, and made by two users at once: the same artifacts, and
no request is paid for twice.

The teacher and the judge are a server of the test, which counts what it is asked and outlives every kill.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from empathy.specs import RepliesSpec, Teacher
from empathy.stages import walk
from serving.scripted import Faults, Scripted
from tests.cluster import (
    EMPATHY,
    Work,
    assert_same,
    descendants,
    empathy,
    kill_and_wait,
    named,
    outcome,
    profile_file,
    started,
    wait_until,
)
from tests.experiments import tiny_file

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

SEED, KILLS = 20, 10
IN_FLIGHT = 4
LATENCY_S = 0.05
LANES = 2
"""The teacher's and the judge's: each keeps IN_FLIGHT requests under way."""
PATIENCE_S = 150
"""In which what a killed driver started must have ended by itself; Ray's agents look for their head for 60 s."""
WORKER_S = 20
"""In which a worker must have come up, if one is to be killed."""
VICTIMS = ("ray::RayTrainWorker", "ray::MapWorker", "EngineCore", "ray::ServeReplica")


def grid(folder: Path, url: str, store: Path | None = None) -> Work:
    """Two strategies x {sft, sft+dpo}, asked of the server at `url`."""
    file = tiny_file(folder)
    text = file.read_text()
    assert text.count('"embedded"') == 2
    assert text.count('[[arms]]\nmethod = "direct"') == 1
    text = text.replace('"embedded"', '"counting"')
    text = text.replace(
        '[[arms]]\nmethod = "direct"', '[[arms]]\nmethod = "improve_human"\nstrategy = ["naive", "all_three"]'
    )
    file.write_text(text)
    profile = profile_file(
        folder,
        f'[ask]\nin_flight = {IN_FLIGHT}\n[train]\nsave_every_s = 0.5\n[providers.counting]\nbase_url = "{url}"\n',
    )
    return Work(folder, file, profile, str(store or folder / "store"))


@dataclass
class Seen:
    """`asked`: times by request. `log`: what the last run said. `killed`: whom, and what did not end with it."""

    work: Work
    asked: dict[str, int] = field(default_factory=dict)
    log: str = ""
    killed: list[str] = field(default_factory=list)
    stayed: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("unbroken")
    with Scripted(Faults(latency_s=LATENCY_S)) as server:
        work = grid(folder, server.url)
        done = empathy("run", work.file, *work.where, cwd=folder)
        assert done.returncode == 0, done.stderr[-6000:]
        return Seen(work, server.counts()["asked"], done.stdout)


# ---------------------------------------------------------------- killed ten times


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Ten kills, each when a random number of further stages is finished and up to three seconds later: of the driver
    every other time on average, else of a worker. The last run is left alone."""
    folder, chance = tmp_path_factory.mktemp("broken"), random.Random(SEED)
    with Scripted(Faults(latency_s=LATENCY_S)) as server:
        seen = Seen(grid(folder, server.url))
        while True:
            log = folder / f"run{len(seen.killed)}.log"
            with started(EMPATHY, "run", seen.work.file, *seen.work.where, cwd=folder, log=log) as process:
                if not _disturb(seen, process, log, chance):
                    assert process.wait(1800) == 0, log.read_text()[-6000:]
                    seen.log = log.read_text()
                    break
        seen.asked = server.counts()["asked"]
    return seen


def _disturb(seen: Seen, process: subprocess.Popen[bytes], log: Path, chance: random.Random) -> bool:
    """Kill until the driver is hit: True; False when there were ten kills."""
    stages = len(list(walk([seen.work.lowered.report])))
    while len(seen.killed) < KILLS:
        finished = _finished(seen.work)
        share = (stages - finished) // (KILLS - len(seen.killed) + 1)  # as many are left for each kill to come
        moment = finished + chance.randint(0, share)
        wait_until(lambda moment=moment: _finished(seen.work) >= moment, process, log, f"{moment} finished stages")  # type: ignore[misc]
        driver = chance.random() < 0.5
        if not driver:
            wait_until(lambda: bool(_workers(process)), process, log, "a worker")
        time.sleep(chance.uniform(0, 3))
        victims = [] if driver else _workers(process)
        if victims:
            victim = chance.choice(victims)
            seen.killed.append(f"{_name(victim)} at {moment}")
            kill_and_wait([victim])
        elif driver:
            seen.killed.append(f"driver at {moment}")
            _kill_driver(process, seen)
            return True
    return False


def _workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that train, ask, or answer for students."""
    return [p for name in VICTIMS for p in named(process.pid, name)]


def _kill_driver(process: subprocess.Popen[bytes], seen: Seen) -> None:
    below = {p: _name(p) for p in descendants(process.pid)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen.stayed += [f"{below[p]} after {seen.killed[-1]}" for p in kill_and_wait(list(below), PATIENCE_S)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:120]
    except psutil.Error:  # it ended by itself
        return "a worker that had ended"


def _finished(work: Work) -> int:
    return len(list(Path(work.url).glob("*/*/artifact.json")))


def test_it_was_killed_ten_times_drivers_and_workers(broken: Seen) -> None:
    assert len(broken.killed) == KILLS, broken.killed
    assert 1 <= sum(who.startswith("driver") for who in broken.killed) < KILLS, broken.killed


def test_the_artifacts_are_those_of_the_unbroken_run(broken: Seen, unbroken: Seen) -> None:
    assert_same(outcome(broken.work), outcome(unbroken.work))


def test_distinct_requests_are_those_of_the_plan_and_no_more_are_repeated_than_were_in_flight(
    broken: Seen, unbroken: Seen
) -> None:
    assert set(broken.asked) == set(unbroken.asked)
    assert sum(unbroken.asked.values()) == len(unbroken.asked)
    repeated = sum(broken.asked.values()) - len(broken.asked)
    assert repeated <= KILLS * LANES * IN_FLIGHT


def test_the_unbroken_run_asks_what_can_be_counted_by_hand(unbroken: Seen) -> None:
    """24 dialogues are rewritten by two strategies. Six are the test: each verdicts stage compares them in both orders;
    a verdict on two identical replies needs no request, and equal pairs of two stages share theirs."""
    counted = _requests(unbroken.work)
    assert counted["replies"] == 2 * 24
    verdicts = sum(s.kind == "verdicts" for s in walk([unbroken.work.lowered.report]))
    assert 0 < counted["verdicts"] <= verdicts * 6 * 2
    assert len(unbroken.asked) == sum(counted.values())


def _requests(work: Work) -> dict[str, int]:
    """Calls that the artifacts say were made, by kind."""
    found = {"replies": 0, "verdicts": 0}
    for stage in walk([work.lowered.report]):
        is_teacher = isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher)
        if is_teacher or stage.kind == "verdicts":
            found[stage.kind] += work.store.get(stage).counts.get("calls", 0)
    return found


def test_a_killed_driver_leaves_no_process_behind(broken: Seen) -> None:
    assert broken.stayed == []


# ---------------------------------------------------------------- two users at once


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Seen], dict[str, Any]]]:
    """Two users with a profile, a cache and a Ray of their own start the same grid on one store."""
    folder = tmp_path_factory.mktemp("together")
    with Scripted(Faults(latency_s=LATENCY_S)) as server:
        users = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            users.append(grid(folder / name, server.url, folder / "store"))
        users[1] = Work(users[1].folder, users[0].file, users[1].profile, users[1].url)  # the same file
        processes = [
            subprocess.Popen(
                [EMPATHY, "run", str(work.file), *work.where],
                cwd=work.folder,
                stdout=subprocess.PIPE,
                stderr=(work.folder / "log").open("wb"),
                text=True,
            )
            for work in users
        ]
        try:
            said = [process.communicate(timeout=3000)[0] for process in processes]
        finally:
            kill_and_wait([p for process in processes for p in descendants(process.pid)])
            for process in processes:
                process.kill()
        logs = [(work.folder / "log").read_text() for work in users]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(log[-3000:] for log in logs)
        yield [Seen(w, {}, log, [out]) for w, log, out in zip(users, logs, said, strict=True)], server.counts()


def test_each_stage_has_one_maker_and_both_end_with_the_same_report(
    together: tuple[list[Seen], dict[str, Any]],
) -> None:
    seen, _ = together
    made = [int(user.log.split("made ")[-1].split(" stages")[0]) for user in seen]
    assert sum(made) == len(list(walk([seen[0].work.lowered.report])))
    tables = [user.killed[0].rsplit("\n", 2)[0] for user in seen]  # the last line is where the page lies
    assert tables[0] == tables[1]
    assert "win rate" in tables[0].lower()


def test_two_users_ask_nothing_twice(together: tuple[list[Seen], dict[str, Any]], unbroken: Seen) -> None:
    _, counts = together
    assert counts["total"] == counts["distinct"]
    assert counts["distinct"] == len(unbroken.asked)
