"""Files under a root, in a folder or in an S3-compatible bucket, and the one conditional put that decides races.

A file is there whole or not at all: readers never see half of one, and what a call returned from survives a power cut.
Paths are relative, with "/". `open_files` chooses by the URL between `empathy.folder` and `empathy.bucket`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.fs as pafs

Names: TypeAlias = list[str]  # inside the classes `list` is a method
CHUNK_BYTES = 16 << 20
"""What is held in memory of a large file, times the requests in flight."""
RACERS = 4
FULL = (errno.ENOSPC, errno.EDQUOT)
"""No room on a disk, or none left of what a user may have of it."""


class Files(ABC):
    """The same verbs on every kind of place. Pickled, it is `url` and `options`: other processes open their own."""

    def __init__(self, url: str, options: Mapping[str, Any]):
        self.url, self.options = url, dict(options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self.options)

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError, PermissionError, or another OSError."""

    def read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:  # absence is an answer here
            return None

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """`read_or_none` of many small files, in order."""
        return [self.read_or_none(path) for path in paths]

    def exist_many(self, paths: Sequence[str]) -> list[bool]:
        """`exists` of many, in order."""
        return [self.exists(path) for path in paths]

    @abstractmethod
    def chunks(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        """Bytes `start` to `size` of a file in order, in pieces of at most CHUNK_BYTES."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file, replacing any before it."""

    @abstractmethod
    def upload(self, path: str, source: Path) -> tuple[int, str]:
        """`write` of a file on disk that may be larger than memory. Its size in bytes and its sha256 in hex."""

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path`. True when it now holds `data`, False when it held something else before.

        `data` carries a nonce of its writer, so that a put whose answer was lost is recognised as our own.
        """

    @abstractmethod
    def list(self, prefix: str, recursive: bool = False) -> Names:
        """Paths of the files in folder `prefix`, sorted; with `recursive` also those further down."""

    @abstractmethod
    def folders(self, prefix: str) -> Names:
        """Names of the folders in folder `prefix`, sorted."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def sweep(self, prefix: str, keep: Callable[[str], bool]) -> None:
        """Remove what lies below folder `prefix`, half-written files too, but those of whose path `keep` is true. For
        who knows that nobody writes there any more."""
        for path in self.list(prefix, recursive=True):
            if not keep(path):
                self.delete(path)

    @abstractmethod
    def age_s(self, path: str) -> float | None:
        """Seconds since `path` was written, by the clock of the place: machines need not agree. None without a file."""

    @property
    @abstractmethod
    def filesystem(self) -> pafs.FileSystem:
        """The place for pyarrow, Ray Data and Ray Train; paths there begin with `root`."""

    @property
    @abstractmethod
    def root(self) -> str:
        """Where `filesystem` has our files."""

    def probe(self) -> None:
        """Write, race for, list, read and delete one small file.

        Raises ValueError naming `store`, its value and the remedy: call it before anything is spent.
        """
        path = f"probe/{uuid.uuid4().hex}"
        try:
            with ThreadPoolExecutor(RACERS) as pool:
                wins = list(pool.map(lambda k: self.put_if_absent(path, f"probe {k}".encode()), range(RACERS)))
            there, absent, listed = self.read(path), self.read_or_none(f"{path}-absent"), self.list("probe")
        except OSError as error:
            raise ValueError(f"store = {self.url!r}: {self.remedy(error)}") from error
        finally:
            with contextlib.suppress(OSError):  # the reason why it failed is the one to tell
                self.delete(path)
        if sum(wins) != 1 or there != f"probe {wins.index(True)}".encode():
            raise ValueError(
                f"store = {self.url!r}: {sum(wins)} of {RACERS} writers were told that they alone made one file. "
                "It does not honour conditional puts (If-None-Match: *), so two runs could overwrite each other; "
                "use a folder or a server that does (AWS S3, Ceph, MinIO)"
            )
        if absent is not None or path not in listed:
            raise ValueError(
                f"store = {self.url!r}: a file just written is not listed; use a place that lists what it holds"
            )

    def look(self) -> None:
        """List one folder: for those who only read. Raises ValueError naming `store`, its value and the remedy."""
        try:
            self.folders("probe")
        except OSError as error:
            raise ValueError(f"store = {self.url!r}: {self.remedy(error)}") from error

    def remedy(self, error: OSError) -> str:
        """What a user can do about an error of this place."""
        if error.errno in FULL:
            return f"cannot be used ({error}); make room there"
        return f"cannot be used ({error}); name a folder you may write to, on a file system with hard links"


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """The system's errors in the block name `path`, if they name nothing: a full disk does not say which."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:  # without a number it is ours, and says all
            error.filename = str(path)
        raise


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file of this machine in pieces of CHUNK_BYTES."""
    with open(path, "rb") as stream:
        while data := stream.read(CHUNK_BYTES):
            yield data


def sha256_of(pieces: Iterator[bytes] | Sequence[bytes]) -> tuple[int, str]:
    """Size in bytes and sha256 in hex."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _reopen(url: str, options: Mapping[str, Any]) -> Files:
    return open_files(url, **options)


def open_files(url: str, *, endpoint: str | None = None, region: str | None = None) -> Files:
    """A folder, or s3://bucket/prefix; credentials come from the usual AWS environment or profile alone.

    `endpoint` (http://host:port) and `region` are for buckets and stand above AWS_ENDPOINT_URL_S3 and AWS_REGION.
    Raises ValueError for another scheme, or a bucket that cannot be named.
    """
    if url.startswith("s3://"):
        from empathy.bucket import BucketFiles  # boto3 costs 0.3 s: folders do without

        return BucketFiles(url, endpoint, region)
    if "://" in url:
        raise ValueError(
            f"store = {url.partition('://')[0]}://...: unknown scheme; give a folder or s3://bucket/prefix"
        )
    from empathy.folder import FolderFiles

    return FolderFiles(url)


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """What other programs need in their environment to reach the same bucket: each of them reads another variable.

    For Ray, vLLM, pyarrow, boto3, the aws command. `options` are those of `open_files`. Without credentials: children
    inherit those.
    """
    checksums = dict.fromkeys(("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"), "when_required")
    endpoint, region = options.get("endpoint"), options.get("region")
    places = {name: str(endpoint) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") if endpoint}
    regions = {name: str(region) for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if region}
    return checksums | places | regions
