"""A folder of this machine or a shared mount as `Files`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs

from empathy.files import CHUNK_BYTES, Files, Names, file_chunks, naming


class FolderFiles(Files):
    """Data goes to a temporary name, is synced, gets its own by one rename or one link; then the folder is synced."""

    def __init__(self, url: str):
        super().__init__(url, {})
        self._root = Path(url).expanduser().absolute()

    @property
    def root(self) -> str:
        return str(self._root)

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        return pafs.LocalFileSystem()

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def chunks(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        with open(self._root / path, "rb") as stream:
            stream.seek(start)
            while start < size and (data := stream.read(min(CHUNK_BYTES, size - start))):
                start += len(data)
                yield data

    def exists(self, path: str) -> bool:
        return os.path.isfile(f"{self._root}/{path}")

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path, [data]) as temporary:
            os.replace(temporary, self._root / path)
        _sync_folder((self._root / path).parent)

    def upload(self, path: str, source: Path) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0

        def read_once() -> Iterator[bytes]:
            nonlocal size
            for piece in file_chunks(source):
                digest.update(piece)
                size += len(piece)
                yield piece

        with self._temporary(path, read_once()) as temporary:
            os.replace(temporary, self._root / path)
        _sync_folder((self._root / path).parent)
        return size, digest.hexdigest()

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = self._root / path
        with self._temporary(path, [data]) as temporary:
            try:
                os.link(temporary, target)  # fails when target exists: the one atomic step
            except FileExistsError:  # on NFS also when the answer to our own link was lost
                return target.read_bytes() == data
        _sync_folder(target.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, path: str, data: Iterator[bytes] | Sequence[bytes]) -> Iterator[Path]:
        """A synced file beside `path` that holds `data`, gone after the block and after any failure."""
        target = self._root / path
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with naming(target), _create(temporary) as stream:
                for piece in data:
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str, recursive: bool = False) -> Names:
        found = []
        for folder, folders, names in os.walk(self._root / prefix):
            base = Path(folder).relative_to(self._root).as_posix()
            found += [n if base == "." else f"{base}/{n}" for n in names if not _is_temporary(n)]
            if not recursive:
                folders.clear()
        return sorted(found)

    def folders(self, prefix: str) -> Names:
        try:
            with os.scandir(self._root / prefix) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:  # nothing was written there yet
            return []

    def delete(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def sweep(self, prefix: str, keep: Callable[[str], bool]) -> None:
        super().sweep(prefix, keep)
        for folder, _, names in os.walk(self._root / prefix):
            for temporary in (Path(folder) / name for name in names if _is_temporary(name)):
                if not keep(temporary.relative_to(self._root).as_posix()):
                    temporary.unlink(missing_ok=True)

    def age_s(self, path: str) -> float | None:
        try:
            written_s = (self._root / path).stat().st_mtime
        except FileNotFoundError:
            return None
        with self._temporary(path, [b""]) as now:  # a shared mount's clock need not be ours
            return now.stat().st_mtime - written_s


def _create(path: Path) -> BinaryIO:
    """Open a new file, making its folders when they are missing."""
    try:
        return open(path, "xb")
    except FileNotFoundError:  # cheaper than asking each time
        _make_folders(path.parent)
        return open(path, "xb")


def _make_folders(folder: Path) -> None:
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
