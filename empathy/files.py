"""Files under a root, in a folder or in an S3-compatible bucket: pyarrow moves the data, one conditional put decides races.

One setting feeds both clients: `endpoint`, and the checksum and addressing variables that S3-compatible servers need.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs


class Files:
    """Relative paths with "/" under `root` of `filesystem`. `url` is what users gave."""

    def __init__(self, url: str, filesystem: pafs.FileSystem, root: str):
        self.url, self.filesystem, self.root = url, filesystem, root

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        with self.filesystem.open_input_file(self._full(path)) as stream:
            data: bytes = stream.read()
        return data

    def read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:  # absence is an answer here
            return None

    def exists(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(self._full(path)).type == pafs.FileType.File)

    def write(self, path: str, data: bytes) -> None:
        """Write a file whose name nobody else uses."""
        with self.filesystem.open_output_stream(self._full(path)) as stream:
            stream.write(data)

    def list(self, prefix: str, recursive: bool = False) -> list[str]:
        """Paths of files under the folder `prefix`, sorted."""
        selector = pafs.FileSelector(self._full(prefix).rstrip("/"), recursive=recursive, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(i.path.removeprefix(self.root + "/") for i in infos if i.type == pafs.FileType.File)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create `path` atomically and durably. True when it now holds `data`, False when it held something else before."""
        raise AssertionError("a subclass decides")

    def probe(self) -> None:
        """Write, read and race one small file. Raises ValueError, before anything is spent, when the place cannot be used."""
        path, data = f"probe/{uuid.uuid4().hex}", b"probe"
        try:
            first, second = self.put_if_absent(path, data), self.put_if_absent(path, b"other")
        except OSError as error:
            raise ValueError(f"store = {self.url!r}: cannot be written ({error}); name a place you may write to") from error
        if not first or second or self.read(path) != data:
            raise ValueError(
                f"store = {self.url!r}: the server does not honour conditional puts (If-None-Match), so two writers could "
                "overwrite each other; use a folder or a server that does (AWS S3, Ceph RGW, MinIO)"
            )
        self.delete(path)

    def delete(self, path: str) -> None:
        self.filesystem.delete_file(self._full(path))


class FolderFiles(Files):
    """A folder of this machine or a shared mount."""

    def __init__(self, url: str):
        super().__init__(url, pafs.LocalFileSystem(), str(Path(url).expanduser().absolute()))

    def write(self, path: str, data: bytes) -> None:
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = Path(self._full(path))
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        self.write(str(temporary.relative_to(self.root)), data)
        try:
            os.link(temporary, target)  # fails when target exists: the one atomic step
        except FileExistsError:
            return target.read_bytes() == data
        finally:
            temporary.unlink()
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True


class BucketFiles(Files):
    """A bucket: boto3 for the conditional put, pyarrow for everything else."""

    def __init__(self, url: str, endpoint: str | None = None, region: str | None = None):
        import boto3
        from botocore.config import Config

        # S3-compatible servers answer 411 to the newer checksums; both clients read this variable.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options: dict[str, Any] = {"region": region, "connect_timeout": 10, "request_timeout": 60}
        if endpoint:
            scheme, _, host = endpoint.partition("://")
            options |= {"endpoint_override": host, "scheme": scheme}
        bucket, _, self._prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        self._bucket = bucket
        super().__init__(url, pafs.S3FileSystem(**options), f"{bucket}/{self._prefix}".rstrip("/"))
        style = {"addressing_style": "path"} if endpoint else {}
        self._client = boto3.client(
            "s3", endpoint_url=endpoint, region_name=region, config=Config(s3=style, retries={"max_attempts": 5, "mode": "standard"})
        )

    def put_if_absent(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        key = f"{self._prefix}/{path}".lstrip("/")
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            code = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in (409, 412) or code >= 500:  # a retried put may have arrived the first time: what is there decides
                return self._holds(path, data, error)
            raise OSError(f"{self.url}/{path}: {error}") from error
        except BotoCoreError as error:  # a timeout is not a failure
            return self._holds(path, data, error)
        return True

    def _holds(self, path: str, data: bytes, error: Exception) -> bool:
        there = self.read_or_none(path)
        if there is None:
            raise OSError(f"{self.url}/{path}: {error}") from error
        return there == data


def open_files(url: str, *, endpoint: str | None = None, region: str | None = None) -> Files:
    """A folder, or s3://bucket/prefix. Raises ValueError for another scheme."""
    if url.startswith("s3://"):
        return BucketFiles(url, endpoint, region)
    if "://" in url:
        raise ValueError(f"store = {url!r}: unknown scheme; give a folder or s3://bucket/prefix")
    return FolderFiles(url)
