"""Hashes of content on disk, for what must be identified by what it holds and not by where it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_of_file(path: Path) -> str:
    """sha256 of the file's bytes, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_files(folder: Path, paths: Iterable[Path]) -> str:
    """sha256 over the relative names and contents of `paths`, in sorted order."""
    lines = [f"{p.relative_to(folder).as_posix()} {digest_of_file(p)}" for p in sorted(paths)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_of_folder(folder: Path) -> str:
    """sha256 over every file under `folder` that is not hidden."""
    return digest_of_files(folder, (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")))
