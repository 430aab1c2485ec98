"""A finished stage as its readers see it: rows and files, each verified against the manifest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter, ValidationError

from empathy.columns import from_table
from empathy.files import Files, file_chunks, naming, sha256_of

R = TypeVar("R")
T = TypeVar("T")
WHOLE = b"whole"


class CorruptError(OSError):
    """A stored file is not what was written. The message says what to delete."""


@dataclass(frozen=True)
class File:
    """One file of an artifact: `path` under the artifact's folder, its size in bytes and sha256."""

    path: str
    size: int
    sha256: str
    rows: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "rows": self.rows,
            "counts": dict(self.counts),
        }


class Artifact:
    """A finished stage. `meta` is what its maker says of it (losses, versions); `counts` are drops by reason."""

    def __init__(self, files: Files, folder: str, manifest: Mapping[str, Any]):
        self._files, self.folder, self.manifest = files, folder, manifest
        self.kind = folder.split("/")[0]
        self.key: str = manifest["key"]
        self.identity: Mapping[str, Any] = manifest["identity"]
        self.meta: Mapping[str, Any] = manifest["meta"]
        self.parts = [File(**p) for p in manifest["parts"]]
        self.files = {name: File(**f) for name, f in manifest["files"].items()}

    @property
    def rows(self) -> int:
        return sum(p.rows or 0 for p in self.parts)

    @property
    def counts(self) -> dict[str, int]:
        """Sums over parts, by name."""
        names = sorted({n for p in self.parts for n in p.counts})
        return {n: sum(p.counts.get(n, 0) for p in self.parts) for n in names}

    def _corrupt(self, file: File, found: str) -> CorruptError:
        folder = f"{self._files.url}/{self.folder}"
        return CorruptError(
            f"{folder}/{file.path} is not what its manifest says ({found}; expected {file.size} bytes, sha256 "
            f"{file.sha256[:12]}): delete the folder {folder} and run again to make it anew (with "
            f"--until {self.folder}, where all that stands on it is made)"
        )

    def _bytes(self, file: File) -> bytes:
        data = self._files.read_or_none(f"{self.folder}/{file.path}")
        if data is None:
            raise self._corrupt(file, "it is missing")
        if (found := sha256_of([data])) != (file.size, file.sha256):
            raise self._corrupt(file, f"{found[0]} bytes, sha256 {found[1][:12]}")
        return data

    def table(self, part: int) -> pa.Table:
        """The rows of one part. Raises CorruptError when it is not what the manifest lists."""
        # Arrow's threads may let go of the file only after `read` returned. Memory of Python's needs the GIL for that:
        # in a process that is about to end, it aborts (apache/arrow#49942). Hence a copy that is Arrow's own.
        file = pa.BufferOutputStream()
        file.write(self.parquet(part))
        return pq.ParquetFile(pa.BufferReader(file.getvalue())).read()  # pq.read_table would load pandas

    def parquet(self, part: int) -> bytes:
        """The file of one part. Raises CorruptError when it is not what the manifest lists."""
        return self._bytes(self.parts[part])

    def read(self, cls: type[R], part: int | None = None) -> Iterator[R]:
        """Records of all parts in order, or of one part; one part in memory at a time."""
        for k in range(len(self.parts)) if part is None else [part]:
            yield from from_table(self.table(k), cls)

    def read_file(self, name: str) -> bytes:
        """One named file, verified. Raises KeyError when the artifact has none of that name."""
        return self._bytes(self.files[name])

    def download(self, target: Path) -> Path:
        """All named files under `target`, verified as they come; done once a key, by one process at a time.

        Goes on where a broken download stopped. A file gone from `target`, or of another size, is fetched anew.
        """
        with _locked(target / f".{self.key}") as mark:
            paths = {target / inside(name): file for name, file in self.files.items()}
            if mark.read() != WHOLE or not all(p.is_file() and p.stat().st_size == f.size for p, f in paths.items()):
                for path, file in paths.items():
                    self._fetch(file, path)
                mark.seek(0)
                mark.write(WHOLE)
        return target

    def _fetch(self, file: File, path: Path) -> None:
        """Stream one file to disk under a name that tells what it will be, verify, and give it its own name."""
        if path.is_file() and sha256_of(file_chunks(path)) == (file.size, file.sha256):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{file.sha256[:16]}.part")
        resumed = partial.exists()
        found = self._append(file, partial)
        if found != (file.size, file.sha256) and resumed:  # what an earlier run left may itself be damaged
            partial.unlink()
            found = self._append(file, partial)
        if found != (file.size, file.sha256):
            partial.unlink()
            raise self._corrupt(file, f"{found[0]} bytes, sha256 {found[1][:12]}")
        partial.replace(path)

    def _append(self, file: File, partial: Path) -> tuple[int, str]:
        """Fetch what `partial` still lacks. Size and sha256 of what it then holds."""
        digest = hashlib.sha256()
        with naming(partial), open(partial, "a+b") as stream:
            stream.seek(0)
            while piece := stream.read(1 << 20):
                digest.update(piece)
            try:
                for piece in self._files.chunks(f"{self.folder}/{file.path}", file.size, stream.tell()):
                    stream.write(piece)
                    digest.update(piece)
            except FileNotFoundError:
                raise self._corrupt(file, "it is missing") from None
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell(), digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """`path`, open to read and write, held by this process alone. The kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def inside(name: str) -> str:
    """`name`, which a manifest gave: never a way out of the folder it is put under. Raises ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"file name {name!r}: must be a relative path without '..'")
    return name


def parse(path: str, data: bytes | None) -> dict[str, Any]:
    """A stored JSON object. Raises CorruptError when it is none."""
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "it is no JSON object")
    return value


def parse_file(path: str, data: bytes | None) -> File:
    """The mark of a part. Raises CorruptError when it is none."""
    return _shaped(_FILE, path, parse(path, data))


def parse_manifest(path: str, data: bytes) -> dict[str, Any]:
    """A manifest that has all that readers look for. Raises CorruptError when it has not."""
    value = parse(path, data)
    _shaped(_MANIFEST, path, value)
    return value


class _Identity(BaseModel):
    kind: str
    spec: dict[str, Any]


class _Manifest(BaseModel):
    key: str
    identity: _Identity
    parts: list[File]
    files: dict[str, File]
    meta: dict[str, Any]
    made: dict[str, Any]


_FILE, _MANIFEST = TypeAdapter(File), TypeAdapter(_Manifest)


def _shaped(shape: TypeAdapter[T], path: str, value: dict[str, Any]) -> T:
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unreadable(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _unreadable(path: str, why: str) -> CorruptError:
    return CorruptError(f"{path} is not readable ({why}): delete it and run again to make it anew")
