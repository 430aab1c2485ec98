"""What a writer has recorded, on its machine's disk until it is in the bucket.

A put takes its time, and a process that is killed meanwhile would take replies with it that were paid for. So each line
goes to `TMPDIR/empathy-UID/ledger/PLACE/WRITER.jsonl` first, with one os.write, which a kill -9 survives. Its writer
holds a lock on the file, which the kernel takes away at its end; whoever on this machine reads a dead writer's journal
puts what is missing into the bucket in its name (`serving.journals`). A writer that ends well leaves no file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from empathy.files import Files, naming


def folder_of(files: Files) -> Path:
    """Where the spools of one bucket lie on this machine."""
    place = hashlib.sha256(repr((files.url, sorted(files.options.items()))).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"empathy-{os.getuid()}" / "ledger" / place


class Spool:
    """Our own file, made with the first line. Raises PermissionError where others could read it, OSError when the
    disk is full."""

    def __init__(self, folder: Path, writer: str):
        self._path = folder / f"{writer}.jsonl"
        self._descriptor: int | None = None
        self._size = 0

    def append(self, line: bytes) -> None:
        if self._descriptor is None:
            _make_private(self._path.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with naming(self._path):
            write_whole(self._descriptor, line, self._size)
        self._size += len(line)

    def close(self, *, kept: bool) -> None:
        """Let go of the file; it goes too, unless `kept` for whoever comes next."""
        if self._descriptor is not None:
            if not kept:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def write_whole(descriptor: int, line: bytes, size: int) -> None:
    """Append `line` to a file of `size` bytes, or leave the file as it is and raise OSError."""
    done = 0
    try:
        while done < len(line):  # a short write happens when the disk is nearly full
            done += os.write(descriptor, line[done:])
    except OSError:  # leave whole lines behind, then tell
        os.ftruncate(descriptor, size)
        raise


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ours = folder.parent.parent
    found = ours.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{ours} belongs to somebody else; remove it, or set TMPDIR to a folder of your own")
    ours.chmod(0o700)


def writers(folder: Path) -> list[str]:
    """Who has a file here, alive or dead."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def left_behind(folder: Path, writer: str, start: int) -> bytes:
    """The whole lines that a dead writer spooled from byte `start` on; empty for a living one, and for one without a
    file here. A file that is read to its end is removed."""
    path = folder / f"{writer}.jsonl"
    try:
        with path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # its writer lives, and puts them itself
                return b""
            stream.seek(start)
            lines, newline, _ = stream.read().rpartition(b"\n")
    except FileNotFoundError:  # absence is the answer
        return b""
    if not lines:
        path.unlink(missing_ok=True)
    return lines + newline
