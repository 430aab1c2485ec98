"""Trainings that fail in a group of two Ray Train workers: each fails alone, and the same group makes the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from empathy.store import Store
from tests.lessons import failing

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_failed_training_takes_nothing_along(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    base, wild, none, sound = failing(store)
    done = subprocess.run(
        [sys.executable, "-m", "tests.training_job", store.url, "failing"],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"(loss|grad_norm) is (nan|inf) at step \d", last)
    assert "24 examples, of which none is within max_length_tokens = 8" in last
    assert [store.done(s) for s in (base, wild, none, sound)] == [True, False, False, True]
    assert len(list((tmp_path / "store" / "ray-train").iterdir())) == 1, "one group made them all"
