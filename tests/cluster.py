"""Whole runs for tests: `empathy ...` in a process of its own with a Ray of its own, and what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest

from empathy import experiment
from empathy.lower import Lowered, lower
from empathy.stages import walk
from empathy.store import Store

ROOT = Path(__file__).parents[1]
EMPATHY = str(Path(sys.executable).parent / "empathy")
FOREIGN = ("RAY_ADDRESS", "OPENAI_API_KEY", "RAY_gcs_rpc_server_reconnect_timeout_s")
"""What a developer's shell, or the process of the tests, may hold and a command that is tested must not see."""
LIMIT_S = 1800
"""For one command; a busy 2-core machine is up to ten times slower than a quiet one."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a command."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN} | more


def empathy(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [EMPATHY, *(str(a) for a in arguments)]
    return subprocess.run(
        words, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def profile_file(folder: Path, text: str = "") -> Path:
    """A profile that keeps caches and reports inside `folder`; `text` is more of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "profile.toml"
    file.write_text(f'cache = "{folder / "cache"}"\nreports = "{folder / "reports"}"\n{text}')
    return file


@dataclass(frozen=True)
class Work:
    """An experiment file, the profile and the store it is run with."""

    folder: Path
    file: Path
    profile: Path
    url: str

    @property
    def where(self) -> tuple[str, ...]:
        """The options of a command."""
        return ("--on", str(self.profile), "--store", self.url)

    @property
    def store(self) -> Store:
        return Store.open(self.url)

    @cached_property
    def lowered(self) -> Lowered:
        return lower(experiment.load(self.file))


def outcome(work: Work) -> dict[str, Any]:
    """What must not depend on place, speed or kills, by stage: rows, and the numbers of every training step."""
    found: dict[str, Any] = {}
    for stage in walk([work.lowered.report]):
        artifact = work.store.get(stage)
        rows = [row for k in range(len(artifact.parts)) for row in artifact.table(k).to_pylist()]
        found[f"{stage.kind}/{stage.key}"] = {"rows": rows, "series": artifact.meta.get("series")}
    return found


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """The same stages with the same content; floats to the rounding of float32."""
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        _assert_close(ours[name], theirs[name], name)


def _assert_close(a: Any, b: Any, path: str) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), path
        for name in a:
            _assert_close(a[name], b[name], f"{path}.{name}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        assert len(a) == len(b), path
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_close(x, y, f"{path}[{k}]")
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5), path
    else:
        assert a == b, path


# ---------------------------------------------------------------- processes


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below `pid`; each knows when it began, so that a number that came again is not mistaken for it."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def named(pid: int, part: str) -> list[psutil.Process]:
    """The descendants of `pid` with `part` in their command line (Ray and vLLM write what they are there)."""
    return [p for p in descendants(pid) if part in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return ""


def kill_and_wait(processes: list[psutil.Process], patience_s: float = 0) -> list[psutil.Process]:
    """Give `processes` `patience_s` to end by themselves, then kill -9 what is left and return it."""
    left = psutil.wait_procs(processes, timeout=patience_s)[1]
    for process in left:
        if process.is_running():
            process.kill()
    psutil.wait_procs(left, timeout=30)
    return left


@contextmanager
def started(*words: str | Path, cwd: Path, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, its output in `log`. Whatever happens, it and its descendants end with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(w) for w in words], cwd=cwd, env=environment(**variables), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        below = descendants(process.pid)
        if process.poll() is None:
            process.kill()
        process.wait()
        kill_and_wait(below)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    """Look twenty times a second. Fails, with the end of the log, when the process ends before, or at the limit."""
    deadline = time.monotonic() + LIMIT_S
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{what}: not seen (exit {process.returncode})\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
