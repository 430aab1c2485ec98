"""Which code this is."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
RECORD = "commit.txt"
"""In the package of code that was copied without its repository (`empathy submit`): what `commit` said there."""
UNKNOWN = "unknown"


@cache
def commit() -> str:
    """What `git describe` says of the checkout that the package is in, with "-dirty" where files were changed; of a
    copy what was recorded with it, of an installed package its version, else "unknown". Looked up once a process."""
    return _commit(PACKAGE)


def _commit(package: Path) -> str:
    if (package / RECORD).is_file():
        return (package / RECORD).read_text(encoding="utf-8").strip()
    if (package.parent / ".git").exists():  # a repository around site-packages is another's
        return _described(package.parent)
    return _version() if package.parent.name == "site-packages" else UNKNOWN


def _described(root: Path) -> str:
    words = ["git", "-C", str(root), "describe", "--always", "--tags", "--dirty"]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # others may be at work in this checkout
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, env=quiet, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow disk: the commit is for people, and may be unknown
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN


def _version() -> str:
    try:
        return importlib.metadata.version("empathy")
    except importlib.metadata.PackageNotFoundError:  # a copy by hand
        return UNKNOWN
