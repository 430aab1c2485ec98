"""Artifacts on a folder or an S3-compatible bucket, through one implementation.

An artifact is a folder `KIND/KEY/` of uniquely named files and an `artifact.json` that is written last, by one conditional
put: it exists whole or not at all, and has one writer. Readers trust only what it lists.

    KIND/KEY/artifact.json           the manifest: identity, files with size and sha256, rows, counts, writer
    KIND/KEY/parts/00007.json        part 7 is finished (the unit of resuming); names its file
    KIND/KEY/00007-NONCE.parquet     its rows
    KIND/KEY/files/NAME-NONCE/...    other files (weights, figures)
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from empathy.columns import from_table, to_table
from empathy.files import Files, open_files
from empathy.stages import Stage

R = TypeVar("R")
MANIFEST = "artifact.json"


@dataclass(frozen=True)
class File:
    """One file of an artifact: `path` under the artifact's folder, its size in bytes and sha256."""

    path: str
    size: int
    sha256: str
    rows: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "sha256": self.sha256, "rows": self.rows, "counts": dict(self.counts)}


class Artifact:
    """A finished stage. `meta` is what its maker wanted to say (losses, proofs, versions); `counts` are drops by reason."""

    def __init__(self, files: Files, folder: str, manifest: Mapping[str, Any]):
        self._files, self.folder, self.manifest = files, folder, manifest
        self.key: str = manifest["key"]
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

    def _bytes(self, file: File) -> bytes:
        data = self._files.read(f"{self.folder}/{file.path}")
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise OSError(
                f"{self._files.url}/{self.folder}/{file.path} is not what its manifest says (size {len(data)}, expected "
                f"{file.size}): delete the folder {self.folder} and run again to make it anew"
            )
        return data

    def table(self, part: int) -> pa.Table:
        """The rows of one part, verified against the manifest."""
        return pq.read_table(pa.BufferReader(self._bytes(self.parts[part])))

    def read(self, cls: type[R], part: int | None = None) -> Iterator[R]:
        """Records of all parts in order, or of one part; one part in memory at a time."""
        for k in range(len(self.parts)) if part is None else [part]:
            yield from from_table(self.table(k), cls)

    def read_file(self, name: str) -> bytes:
        """One named file, verified. Raises KeyError when the artifact has none of that name."""
        return self._bytes(self.files[name])

    def download(self, target: Path) -> Path:
        """All named files under `target`, verified as they come; done once a key (a second call sees the mark)."""
        mark = target / f".{self.key}"
        if not mark.exists():
            for name in self.files:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                temporary.write_bytes(self.read_file(name))
                temporary.replace(path)
            mark.touch()
        return target


class Writer:
    """Makes one artifact. Parts may come in any order and from several processes; `commit` ends it."""

    def __init__(self, files: Files, stage_identity: Mapping[str, Any], key: str, nonce: str, epoch: int):
        self._files, self.identity, self.key, self.nonce, self.epoch = files, stage_identity, key, nonce, epoch
        self.folder = f"{stage_identity['kind']}/{key}"
        self._named: dict[str, File] = {}

    def finished_parts(self) -> dict[int, File]:
        """Parts that are already there, from this or an earlier, broken attempt."""
        paths = self._files.list(f"{self.folder}/parts/")
        return {int(Path(p).stem): File(**json.loads(self._files.read(p))) for p in paths if p.endswith(".json")}

    def _put(self, path: str, data: bytes, **extra: Any) -> File:
        self._files.write(f"{self.folder}/{path}", data)
        return File(path, len(data), hashlib.sha256(data).hexdigest(), **extra)

    def write_part(self, index: int, table: pa.Table, counts: Mapping[str, int] | None = None) -> bool:
        """Write part `index` and mark it finished. False when another attempt had finished it first (its rows stay)."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        file = self._put(
            f"{index:05d}-{self.nonce}.parquet", sink.getvalue().to_pybytes(), rows=table.num_rows, counts=dict(counts or {})
        )
        return self._files.put_if_absent(f"{self.folder}/parts/{index:05d}.json", json.dumps(file.as_json()).encode())

    def write_records(self, index: int, records: Iterable[Any], cls: type, counts: Mapping[str, int] | None = None) -> bool:
        """`write_part` of records of class `cls`."""
        return self.write_part(index, to_table(records, cls), counts)

    def add_file(self, name: str, source: Path | bytes) -> None:
        """Add a file that readers know as `name` (a relative path)."""
        data = source if isinstance(source, bytes) else source.read_bytes()
        self._named[name] = self._put(f"files/{self.nonce}/{name}", data)

    def add_folder(self, folder: Path, prefix: str = "") -> None:
        """Add every file under `folder`."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.add_file(prefix + path.relative_to(folder).as_posix(), path)

    def commit(self, meta: Mapping[str, Any] | None = None, made: Mapping[str, Any] | None = None) -> None:
        """Write the manifest. Raises FileExistsError when another writer has committed this key first.

        Parts must be 0..n-1 without a gap. `meta` is read by later stages; `made` is for people (host, commit, seconds).
        """
        parts = self.finished_parts()
        assert sorted(parts) == list(range(len(parts))), f"{self.folder}: parts {sorted(parts)} have a gap"
        manifest = {
            "key": self.key,
            "identity": self.identity,
            "parts": [parts[k].as_json() for k in sorted(parts)],
            "files": {name: f.as_json() for name, f in sorted(self._named.items())},
            "meta": dict(meta or {}),
            "made": {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": socket.gethostname(), "pid": os.getpid()}
            | dict(made or {}),
            "nonce": self.nonce,
            "epoch": self.epoch,
        }
        data = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode()
        if not self._files.put_if_absent(f"{self.folder}/{MANIFEST}", data):
            raise FileExistsError(f"{self._files.url}/{self.folder}: finished by another writer while this one worked")


class Store:
    """All artifacts under one root."""

    def __init__(self, files: Files):
        self.files = files

    @classmethod
    def open(cls, url: str, **options: Any) -> Store:
        """`url` is a folder or s3://bucket/prefix; `options` are those of `empathy.files.open_files`."""
        return cls(open_files(url, **options))

    @property
    def url(self) -> str:
        return self.files.url

    def find(self, kind: str, key: str) -> Artifact | None:
        """The finished artifact, or None."""
        folder = f"{kind}/{key}"
        data = self.files.read_or_none(f"{folder}/{MANIFEST}")
        return None if data is None else Artifact(self.files, folder, json.loads(data))

    def get(self, stage: Stage) -> Artifact:
        """The artifact of a stage that must be finished. Raises FileNotFoundError when it is not."""
        artifact = self.find(stage.kind, stage.key)
        if artifact is None:
            raise FileNotFoundError(f"{stage!r} is not finished in {self.url}")
        return artifact

    def done(self, stage: Stage) -> bool:
        return self.files.exists(f"{stage.kind}/{stage.key}/{MANIFEST}")

    def writer(self, stage: Stage, epoch: int = 0) -> Writer:
        """A writer with a nonce of its own; `epoch` is the fencing number of the lease it writes under."""
        return Writer(self.files, stage.identity, stage.key, uuid.uuid4().hex[:12], epoch)

    def artifacts(self, kind: str | None = None) -> Iterator[Artifact]:
        """All finished artifacts, of one kind or of all."""
        for path in self.files.list(f"{kind}/" if kind else "", recursive=True):
            if path.endswith(f"/{MANIFEST}") and path.count("/") == 2:
                yield Artifact(self.files, path.rsplit("/", 1)[0], json.loads(self.files.read(path)))
