"""Replies as lines of JSON: one journal a writer, appended as answers arrive, read and tailed by everybody.

Folder:  ledger/replies/WRITER.jsonl, one os.write a reply (survives kill -9 of the process), fdatasync once a second.
Bucket:  ledger/replies/WRITER/00001.jsonl, ... by group commit: the next chunk is put as soon as the last one is there;
         every 256 chunks also as one 00001-00256.jsonl, which later readers take instead. Until then a line is kept
         on the machine's disk (`serving.spools`): what a killed writer had not put yet, the next reader there puts.

Each reads the other's layout too: a store may be copied from a bucket into a folder, or back, and what was paid for
comes along.

A line begins with `{"key":"<40 hex digits>"`. Only whole lines count: a line torn by a kill is not there.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from glob import glob
from typing import Protocol

from empathy.files import Files, naming
from empathy.folder import FolderFiles
from serving import spools

FOLDER = "ledger/replies"
BLOCK_BYTES = 16 << 20
CHUNKS_A_SEGMENT = 256
MOST_OPEN = 64
Block = tuple[int, bytes]
"""Where the block begins (a place that `read` understands), and whole lines."""


class Journals(Protocol):
    def writers(self) -> list[str]:
        """Everybody who has written."""

    def fetch(self, writer: str) -> Iterator[Block]:
        """Whole lines of `writer` that were not fetched before."""

    def read(self, place: int, size: int) -> bytes:
        """`size` bytes at `place`."""

    def append(self, line: bytes) -> int:
        """Add a line to our own journal; returns its place. Raises OSError when it could not be written."""

    def flush(self) -> None:
        """Return when all that was appended is durable."""

    def close(self) -> None:
        """Flush, and let go of files."""


def open_journals(files: Files, writer: str) -> Journals:
    return FolderJournals(files, writer) if isinstance(files, FolderFiles) else BucketJournals(files, writer)


class FolderJournals:
    """Journals as growing files. A place is (number of the writer << 40) + offset."""

    def __init__(self, files: FolderFiles, writer: str):
        self._folder, self._writer = f"{files.root}/{FOLDER}", writer
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._fetched: dict[str, int] = {}
        self._reading: dict[int, int] = {}
        self._descriptor: int | None = None
        self._size, self._dirty = 0, False
        self._lock = threading.Lock()

    def _number(self, writer: str) -> int:
        if writer not in self._numbers:
            self._numbers[writer] = len(self._names)
            self._names.append(writer)
        return self._numbers[writer]

    def _path(self, writer: str) -> str:
        return f"{self._folder}/{writer}.jsonl"

    def writers(self) -> list[str]:
        """Each chunk of a copied bucket counts as a writer's journal; its segments hold the same lines again."""
        names = sorted(glob("*.jsonl", root_dir=self._folder) + glob("*/*.jsonl", root_dir=self._folder))
        return [name.removesuffix(".jsonl") for name in names if "-" not in name]

    def fetch(self, writer: str) -> Iterator[Block]:
        start = self._fetched.get(writer, 0)
        if not os.path.exists(self._path(writer)) or os.path.getsize(self._path(writer)) == start:
            return
        with open(self._path(writer), "rb") as stream:
            stream.seek(start)
            tail = b""
            while block := stream.read(BLOCK_BYTES):
                whole, newline, tail = (tail + block).rpartition(b"\n")
                if newline:
                    yield (self._number(writer) << 40) + start, whole + newline
                    start += len(whole) + 1
                    self._fetched[writer] = start

    def read(self, place: int, size: int) -> bytes:
        number = place >> 40
        if number not in self._reading:
            if len(self._reading) >= MOST_OPEN:
                self._close_readers()
            self._reading[number] = os.open(self._path(self._names[number]), os.O_RDONLY)
        return os.pread(self._reading[number], size, place & ((1 << 40) - 1))

    def _close_readers(self) -> None:
        while self._reading:
            os.close(self._reading.popitem()[1])

    def append(self, line: bytes) -> int:
        with self._lock:
            if self._descriptor is None:
                os.makedirs(self._folder, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                self._descriptor = os.open(self._path(self._writer), flags, 0o644)
            spools.write_whole(self._descriptor, line, self._size)
            place = (self._number(self._writer) << 40) + self._size
            self._size += len(line)
            self._dirty = True
            return place

    def flush(self) -> None:
        if self._dirty and self._descriptor is not None:
            self._dirty = False
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        self.flush()
        self._close_readers()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class BucketJournals:
    """Journals as numbered chunks. What is read is kept in an unnamed temporary file; a place is an offset in it."""

    def __init__(self, files: Files, writer: str):
        self._files, self._writer = files, writer
        self._lines = tempfile.TemporaryFile(prefix="empathy-ledger-")  # noqa: SIM115 (lives as long as the ledger)
        self._kept = 0
        self._next: dict[str, int] = {}
        self._fetched: dict[str, int] = {}
        self._spools = spools.folder_of(files)
        self._spool = spools.Spool(self._spools, writer)
        self._segments: dict[str, list[str]] | None = None
        self._copied: dict[str, str | None] = {}
        self._waiting: list[bytes] = []
        self._segment: list[bytes] = []
        self._chunks = 0
        self._error: OSError | None = None
        self._full: OSError | None = None
        self._changed = threading.Condition()
        self._lines_lock = threading.Lock()
        self._busy = False

    def writers(self) -> list[str]:
        paths = self._files.list(FOLDER, recursive=True)
        chunks = [path for path in paths if path.count("/") > FOLDER.count("/") + 1]
        for path in set(paths).difference(chunks):  # a folder's journal
            self._copied.setdefault(path.rsplit("/", 1)[1].removesuffix(".jsonl"), path)
        self._segments = {}
        for path in chunks:
            if "-" in path.rsplit("/", 1)[1]:
                self._segments.setdefault(path.split("/")[-2], []).append(path)
        return sorted({path.split("/")[-2] for path in chunks} | set(spools.writers(self._spools)) | set(self._copied))

    def _keep(self, data: bytes) -> int:
        with self._lines_lock:
            place = self._kept
            with naming(tempfile.gettempdir()):
                if os.pwrite(self._lines.fileno(), data, place) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._kept += len(data)
            return place

    def fetch(self, writer: str) -> Iterator[Block]:
        if writer == self._writer:
            return
        if (copied := self._copied.get(writer)) is not None:
            self._copied[writer] = None  # nobody appends to it here: once is enough
            lines, newline, _ = self._files.read(copied).rpartition(b"\n")
            yield self._keep(lines + newline), lines + newline
        for path in (self._segments or {}).pop(writer, []):
            first, last = path.rsplit("/", 1)[1].removesuffix(".jsonl").split("-")
            if int(first) == self._next.get(writer, 1):
                data = self._files.read(path)
                yield self._took(writer, data, int(last))
        while data := self._chunk(writer):
            yield self._took(writer, data, self._next.get(writer, 1))

    def _took(self, writer: str, data: bytes, chunk: int) -> Block:
        self._next[writer] = chunk + 1
        self._fetched[writer] = self._fetched.get(writer, 0) + len(data)
        return self._keep(data), data

    def _chunk(self, writer: str) -> bytes:
        """The next chunk; where there is none, what a dead writer left on this machine is made one."""
        path = f"{FOLDER}/{writer}/{self._next.get(writer, 1):05d}.jsonl"
        data = self._files.read_or_none(path)
        if data is not None:
            return data
        left = spools.left_behind(self._spools, writer, self._fetched.get(writer, 0))
        if left and not self._files.put_if_absent(path, left):  # its last put arrived after all, and is shorter
            return self._files.read(path)
        return left

    def read(self, place: int, size: int) -> bytes:
        return os.pread(self._lines.fileno(), size, place)

    def append(self, line: bytes) -> int:
        with self._changed:
            place = self._keep_here(line)
            if self._error:
                raise self._error
            self._waiting.append(line)
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._commit, name="ledger-commit", daemon=True).start()
        if self._full:
            raise self._full
        return place

    def _keep_here(self, line: bytes) -> int:
        """Its place, unless this machine's disk is full. The bucket is not: what was paid for goes there all the same,
        and the spool, which would lack it, is not written any more."""
        if self._full is None:
            try:
                self._spool.append(line)
                return self._keep(line)
            except OSError as error:  # raised by `append` when the line is on its way
                self._full = error
        return -1

    def _commit(self) -> None:
        """Put chunk after chunk until nothing waits."""
        while True:
            with self._changed:
                lines, self._waiting = self._waiting, []
                if not lines:
                    self._busy = False
                    self._changed.notify_all()
                    return
            try:
                self._put(b"".join(lines))
            except OSError as error:  # told to whoever appends or flushes next: this thread has no caller
                with self._changed:
                    self._error, self._busy = error, False
                    self._changed.notify_all()
                return

    def _put(self, data: bytes) -> None:
        self._chunks += 1
        path = f"{FOLDER}/{self._writer}/{self._chunks:05d}.jsonl"
        if not self._files.put_if_absent(path, data):  # never over what a reader took for ours
            raise OSError(f"{path}: another process took this one for dead and wrote it; start again")
        self._segment.append(data)
        if len(self._segment) == CHUNKS_A_SEGMENT:
            first = self._chunks - CHUNKS_A_SEGMENT + 1
            name = f"{first:05d}-{self._chunks:05d}.jsonl"
            self._files.write(f"{FOLDER}/{self._writer}/{name}", b"".join(self._segment))
            self._segment = []

    def flush(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            if self._error:
                raise self._error

    def close(self) -> None:
        kept = True
        try:
            self.flush()
            kept = False
        finally:
            self._spool.close(kept=kept)
            self._lines.close()
