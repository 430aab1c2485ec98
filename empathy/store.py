"""Artifacts on a folder or an S3-compatible bucket, through one implementation.

An artifact is a folder `KIND/KEY/` of uniquely named files and an `artifact.json` that is written last, by one
conditional put: it exists whole or not at all, and has one writer. Readers trust only what it lists.

    KIND/KEY/artifact.json           the manifest: identity, files with size and sha256, rows, counts, writer
    KIND/KEY/parts/00007.json        part 7 is finished (the unit of resuming); names its file
    KIND/KEY/00007-NONCE.parquet     its rows
    KIND/KEY/files/NONCE/NAME        other files (weights, figures)
    KIND/KEY/lease/000001.json       who may write, by epoch (`cluster.lease`)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from empathy.artifact import Artifact, CorruptError, File, inside, parse, parse_file, parse_manifest
from empathy.columns import to_table
from empathy.files import FULL, Files, open_files, sha256_of
from empathy.specs import KINDS
from empathy.stages import Stage, key_of
from empathy.version import commit

__all__ = ["MANIFEST", "Artifact", "CorruptError", "FencedError", "File", "Store", "Writer", "newest_epoch"]

MANIFEST = "artifact.json"
MANIFESTS_AT_ONCE = 256


class FencedError(RuntimeError):
    """Another process has taken over the lease this one was writing under; what it made is not committed."""


class Writer:
    """Makes one artifact. Parts may come in any order and from several processes; `commit` ends it."""

    def __init__(self, files: Files, stage_identity: Mapping[str, Any], key: str, nonce: str, epoch: int):
        self._files, self.identity, self.key, self.nonce, self.epoch = files, stage_identity, key, nonce, epoch
        self.folder = f"{stage_identity['kind']}/{key}"
        self._named: dict[str, File] = {}
        self._parts: dict[int, File] = {}  # what is known of finished parts: it never changes

    def finished_indices(self) -> set[int]:
        """Numbers of the parts that are already there: one listing, whatever their number."""
        return _numbers(self._files.list(f"{self.folder}/parts"), digits=5)

    def finished_parts(self) -> dict[int, File]:
        """Parts that are already there, from this or an earlier, broken attempt."""
        indices = sorted(self.finished_indices())
        unknown = [k for k in indices if k not in self._parts]
        marks = self._files.read_many([self._mark(k) for k in unknown])
        self._parts |= {k: parse_file(self._at(k), mark) for k, mark in zip(unknown, marks, strict=True)}
        return {k: self._parts[k] for k in indices}

    def part(self, index: int) -> File:
        """A finished part. Raises FileNotFoundError when it is not finished."""
        if index not in self._parts:
            self._parts[index] = parse_file(self._at(index), self._files.read(self._mark(index)))
        return self._parts[index]

    def _mark(self, index: int) -> str:
        return f"{self.folder}/parts/{index:05d}.json"

    def _at(self, index: int) -> str:
        """Where a mark is, for people."""
        return f"{self._files.url}/{self._mark(index)}"

    def write_part(self, index: int, table: pa.Table, counts: Mapping[str, int] | None = None) -> bool:
        """Write part `index` and mark it finished. False when another attempt had finished it first (its rows stay)."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        # A name for this attempt alone: a second one must not touch what the first one's mark may already point at.
        data, path = sink.getvalue().to_pybytes(), f"{index:05d}-{uuid.uuid4().hex[:12]}.parquet"
        self._files.write(f"{self.folder}/{path}", data)
        file = File(path, *sha256_of([data]), rows=table.num_rows, counts=dict(counts or {}))
        first = self._files.put_if_absent(self._mark(index), json.dumps(file.as_json()).encode())
        if first:
            self._parts[index] = file
        else:
            self._files.delete(f"{self.folder}/{path}")
        return first

    def write_records(
        self, index: int, records: Iterable[Any], cls: type, counts: Mapping[str, int] | None = None
    ) -> bool:
        """`write_part` of records of class `cls`."""
        return self.write_part(index, to_table(records, cls), counts)

    def add_file(self, name: str, source: Path | bytes) -> None:
        """Add a file that readers know as `name` (a relative path). A Path is streamed: may be larger than memory."""
        path = f"files/{self.nonce}/{inside(name)}"
        try:
            if isinstance(source, bytes):
                self._files.write(f"{self.folder}/{path}", source)
                self._named[name] = File(path, *sha256_of([source]))
            else:
                self._named[name] = File(path, *self._files.upload(f"{self.folder}/{path}", source))
        except OSError as error:
            if error.errno in FULL:  # what nobody will name takes the room of what comes after it
                self._abandon()
            raise

    def _abandon(self) -> None:
        """Remove the files that this attempt has added."""
        self._named.clear()
        for path in self._files.list(f"{self.folder}/files/{self.nonce}", recursive=True):
            self._files.delete(path)

    def add_folder(self, folder: Path, prefix: str = "") -> None:
        """Add every file under `folder`."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.add_file(prefix + path.relative_to(folder).as_posix(), path)

    def commit(self, meta: Mapping[str, Any] | None = None, made: Mapping[str, Any] | None = None) -> None:
        """Write the manifest. Raises FileExistsError when another writer has committed this key first, FencedError when
        one has taken over our lease. Calling it again after an OSError is safe.

        Parts must be 0..n-1 without a gap. `meta` is for later stages, `made` for people (host, commit, seconds).
        """
        parts = self.finished_parts()
        assert sorted(parts) == list(range(len(parts))), f"{self.folder}: parts {sorted(parts)} have a gap"
        manifest = {
            "key": self.key,
            "identity": self.identity,
            "parts": [parts[k].as_json() for k in sorted(parts)],
            "files": {name: f.as_json() for name, f in sorted(self._named.items())},
            "meta": dict(meta or {}),
            "made": {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "commit": commit(),
            }
            | dict(made or {}),
            "nonce": self.nonce,
            "epoch": self.epoch,
        }
        data, path = (
            json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode(),
            f"{self.folder}/{MANIFEST}",
        )
        if 0 < self.epoch < (newest := newest_epoch(self._files, self.folder)):
            raise FencedError(f"{self._files.url}/{self.folder}: epoch {newest} has taken over from our {self.epoch}")
        if not self._files.put_if_absent(path, data) and parse(path, self._files.read(path)).get("nonce") != self.nonce:
            raise FileExistsError(f"{self._files.url}/{self.folder}: finished by another writer while this one worked")
        if self.epoch > 1:  # an attempt before this one was broken off
            with contextlib.suppress(OSError):  # what it left takes room, and nobody reads it
                self._sweep()

    def _sweep(self) -> None:
        """Remove what the manifest does not name; leases stay, they count the attempts."""
        paths = [file.path for file in [*self._parts.values(), *self._named.values()]]
        named = {f"{self.folder}/{path}" for path in (MANIFEST, *paths)}
        own = (f"{self.folder}/parts/", f"{self.folder}/lease/")
        self._files.sweep(self.folder, lambda path: path in named or path.startswith(own))


def newest_epoch(files: Files, folder: str) -> int:
    """The highest epoch of the leases on an artifact's folder; 0 when nobody ever held one."""
    return max(_numbers(files.list(f"{folder}/lease"), digits=6), default=0)


def _numbers(paths: Iterable[str], digits: int) -> set[int]:
    """The numbers of files that are named by them ("000001.json"); what else lies there is not ours."""
    names = {PurePosixPath(p).stem for p in paths if p.endswith(".json")}
    return {int(n) for n in names if n.isascii() and n.isdigit() and n == f"{int(n):0{digits}d}"}


class Store:
    """All artifacts under one root. Pickled, it is its `url` and `options`: what `Store.open(url, **options)` takes."""

    def __init__(self, files: Files):
        self.files = files

    @classmethod
    def open(cls, url: str, **options: Any) -> Store:
        """`url` is a folder or s3://bucket/prefix; `options` are those of `empathy.files.open_files`."""
        return cls(open_files(url, **options))

    @property
    def url(self) -> str:
        return self.files.url

    @property
    def options(self) -> dict[str, Any]:
        """With `url`, all that another process needs to open this store (no credentials)."""
        return dict(self.files.options)

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact, or None. Raises CorruptError when its manifest is not the one that was written."""
        folder = f"{kind}/{key}"
        data = self.files.read_or_none(f"{folder}/{MANIFEST}")
        return None if data is None else self._artifact(folder, data)

    def _artifact(self, folder: str, data: bytes) -> Artifact:
        manifest = parse_manifest(f"{self.url}/{folder}/{MANIFEST}", data)
        if f"{manifest['identity']['kind']}/{key_of(manifest['identity'])}" != folder:
            raise CorruptError(
                f"{self.url}/{folder}: its identity belongs to another key; delete this folder and run again"
            )
        return Artifact(self.files, folder, manifest)

    def get(self, stage: Stage) -> Artifact:
        """The artifact of a stage that must be finished. Raises FileNotFoundError when it is not."""
        artifact = self.find(stage.kind, stage.key)
        if artifact is None:
            raise FileNotFoundError(f"{stage!r} is not finished in {self.url}")
        return artifact

    def done(self, stage: Stage) -> bool:
        return self.files.exists(f"{stage.kind}/{stage.key}/{MANIFEST}")

    def finished(self, stages: Iterable[Stage]) -> set[str]:
        """Keys of the stages that are done: `done` for thousands: one listing a kind, a look at what was begun."""
        asked = {(stage.kind, stage.key) for stage in stages}
        begun = {(kind, key) for kind in {kind for kind, _ in asked} for key in self.files.folders(kind)}
        looked = sorted(asked & begun)
        there = self.files.exist_many([f"{kind}/{key}/{MANIFEST}" for kind, key in looked])
        return {key for (_, key), is_there in zip(looked, there, strict=True) if is_there}

    def writer(self, stage: Stage, epoch: int | None = None) -> Writer:
        """A writer with a nonce of its own.

        `epoch` is the fencing number of the lease it writes under: by default that of the newest lease, if any.
        """
        number = newest_epoch(self.files, f"{stage.kind}/{stage.key}") if epoch is None else epoch
        return Writer(self.files, stage.identity, stage.key, uuid.uuid4().hex[:12], number)

    def artifacts(
        self, kind: str | None = None, damaged: Callable[[CorruptError], None] | None = None
    ) -> Iterator[Artifact]:
        """All finished artifacts, of one kind or of all, by kind and key. One whose manifest is corrupt is told to
        `damaged` and left out; without it, raises CorruptError."""
        return self.named(
            [f"{k}/{key}" for k in ([kind] if kind else sorted(KINDS)) for key in self.files.folders(k)], damaged
        )

    def named(self, names: Iterable[str], damaged: Callable[[CorruptError], None] | None = None) -> Iterator[Artifact]:
        """Those of the artifacts of these names ("KIND/KEY") that are finished, many read at once; `damaged` as in
        `artifacts`."""
        folders = list(names)
        for first in range(0, len(folders), MANIFESTS_AT_ONCE):
            some = folders[first : first + MANIFESTS_AT_ONCE]
            manifests = self.files.read_many([f"{folder}/{MANIFEST}" for folder in some])
            for folder, data in zip(some, manifests, strict=True):
                try:
                    artifact = None if data is None else self._artifact(folder, data)
                except CorruptError as error:
                    if damaged is None:
                        raise
                    damaged(error)
                    continue
                if artifact is not None:
                    yield artifact

    def discard(self, kind: str, key: str) -> None:
        """Remove an artifact, whole or half: the manifest first, so that nobody believes what is left of it."""
        self.files.delete(f"{kind}/{key}/{MANIFEST}")
        for path in self.files.list(f"{kind}/{key}", recursive=True):
            self.files.delete(path)
