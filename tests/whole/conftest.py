"""One finished run of the tiny experiment, shared by all tests that look at one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import pytest

from tests.cluster import Work, empathy, profile_file
from tests.experiments import tiny_file


@dataclass(frozen=True)
class Finished:
    """`done`: the process that made everything in `work`."""

    work: Work
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`empathy run` on an empty store."""
    folder = tmp_path_factory.mktemp("finished")
    work = Work(folder, tiny_file(folder), profile_file(folder), str(folder / "store"))
    done = empathy("run", work.file, *work.where, cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]
    return Finished(work, done)
