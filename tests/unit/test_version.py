"""Which code made an artifact."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from empathy import version
from empathy.specs import ReportSpec
from empathy.stages import Stage
from empathy.store import Store


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.check_output(["git", "-C", str(folder), *words], text=True, env=os.environ | who)


def test_a_checkout_is_described_and_changes_show(tmp_path: Path) -> None:
    package = tmp_path / "empathy"
    package.mkdir()
    assert version._commit(package) == "unknown"
    (package / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert head.startswith(version._commit(package))
    (package / "a.py").write_text("2")
    assert version._commit(package) == f"{head[:7]}-dirty"
    (package / version.RECORD).write_text("recorded")
    assert version._commit(package) == "recorded"


def test_without_git_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version._commit(tmp_path / "empathy") == "unknown"


def test_an_artifact_says_which_code_made_it(tmp_path: Path) -> None:
    store, stage = Store.open(str(tmp_path)), Stage(ReportSpec())
    store.writer(stage).commit()
    assert store.get(stage).manifest["made"]["commit"] == version.commit()
