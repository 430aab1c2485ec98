"""An S3-compatible bucket as `Files`: one boto3 client for all, so that one set of timeouts, retries and errors holds.

Against pyarrow on a Ceph gateway on loopback: a small put 2.7 ms (6.2), 512 MiB up in 1.9 s (3.2), down in 0.6 s (0.7).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import boto3
import pyarrow.fs as pafs
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from empathy.files import CHUNK_BYTES, Files, Names, environment, file_chunks, sha256_of

T = TypeVar("T")
Pages: TypeAlias = list[dict[str, Any]]
IN_FLIGHT = 4
"""Large reads at once: 4 x 16 MiB held in memory."""
SMALL_IN_FLIGHT = 32
ATTEMPTS = 8
"""With botocore's back-off a burst of 503 of about 20 s is waited out."""
TRANSFER = TransferConfig(
    multipart_threshold=4 * CHUNK_BYTES, multipart_chunksize=CHUNK_BYTES, max_concurrency=IN_FLIGHT
)

_RIGHTS = "allow s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject on it"
_REGION = "the bucket is in another region; set `region`"
_SERVER = "nobody answers there; correct `endpoint` (http://host:port), or start the server"
_LOGIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
REMEDIES = {  # by S3's code, or botocore's name, of the error
    "NoSuchBucket": "this bucket does not exist there; create it or correct its name",
    "InvalidBucketName": "no bucket can have this name; correct it",
    "ParamValidationError": "no bucket can have this name; correct it",
    "AccessDenied": f"these credentials may not use it; {_RIGHTS}",
    "403": f"these credentials may not use it; {_RIGHTS}",
    "InvalidAccessKeyId": f"the server does not know this access key; {_LOGIN}",
    "SignatureDoesNotMatch": f"the secret key is not this access key's; {_LOGIN}",
    "ExpiredToken": "these credentials have expired; log in again or export new ones",
    "NoCredentialsError": f"there are no credentials; {_LOGIN}",
    "PartialCredentialsError": f"half of the credentials is missing; {_LOGIN}",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "EndpointConnectionError": _SERVER,
    "ConnectTimeoutError": _SERVER,
    "NotImplemented": "the server lacks conditional puts (If-None-Match); use AWS S3, Ceph or MinIO",
}
DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class BucketFiles(Files):
    """`s3://bucket/prefix`."""

    def __init__(self, url: str, endpoint: str | None = None, region: str | None = None, attempts: int = ATTEMPTS):
        self._bucket, self._prefix = _split(url)
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint = {endpoint!r}: begin with http:// or https://")
        super().__init__(url, {k: v for k, v in (("endpoint", endpoint), ("region", region)) if v})
        self._attempts = attempts
        self._endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        self._region = region
        config = Config(
            s3={"addressing_style": "path"} if self._endpoint else {},
            retries={"total_max_attempts": attempts, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=SMALL_IN_FLIGHT,
            request_checksum_calculation="when_required",  # Ceph 16 answers 411 to the newer checksums
            response_checksum_validation="when_required",
        )
        try:
            # A session of its own: boto3's default one keeps the first credentials it saw.
            self._client = boto3.session.Session().client(
                "s3", endpoint_url=self._endpoint, region_name=region, config=config
            )
        except (BotoCoreError, ValueError) as error:  # a profile that does not exist, an endpoint that is no URL
            raise ValueError(f"store = {url!r}: {error}; correct AWS_PROFILE or `endpoint`") from error

    @property
    def root(self) -> str:
        return f"{self._bucket}/{self._prefix}".rstrip("/")

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        for name, value in environment({}).items():
            os.environ.setdefault(name, value)  # pyarrow takes the checksum setting from nowhere else
        place = {}
        if self._endpoint:
            scheme, _, host = self._endpoint.partition("://")
            place = {"endpoint_override": host.rstrip("/"), "scheme": scheme}
        return pafs.S3FileSystem(
            region=self._region,
            allow_delayed_open=True,  # one put instead of a multipart upload for small files
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
            **place,
        )

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".lstrip("/")

    def _call(self, path: str, request: Callable[[], T]) -> T:
        """`request()`, its failures as OSError that name the file."""
        try:
            return request()
        except (ClientError, BotoCoreError, S3UploadFailedError) as error:
            raise _os_error(f"{self.url}/{path}", error) from error

    def _get(self, path: str, **extra: Any) -> bytes:
        """One whole answer. botocore retries until the headers are there; we, when the body breaks off."""
        for attempt in range(1, ATTEMPTS + 1):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(path), **extra)["Body"]
            try:
                data: bytes = body.read()
                return data
            except (HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS:
                    raise
                _pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def read(self, path: str) -> bytes:
        return self._call(path, lambda: self._get(path))

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(SMALL_IN_FLIGHT) as pool:
            return list(pool.map(self.read_or_none, paths))

    def exist_many(self, paths: Sequence[str]) -> list[bool]:
        with ThreadPoolExecutor(SMALL_IN_FLIGHT) as pool:
            return list(pool.map(self.exists, paths))

    def chunks(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        ranges = ((first, min(first + CHUNK_BYTES, size) - 1) for first in range(start, size, CHUNK_BYTES))
        pending: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            for first, last in ranges:
                pending.append(pool.submit(self._range, path, first, last))
                if len(pending) == IN_FLIGHT:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _range(self, path: str, first: int, last: int) -> bytes:
        return self._call(path, lambda: self._get(path, Range=f"bytes={first}-{last}"))

    def exists(self, path: str) -> bool:
        return self._head(path) is not None

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self._call(
                path, lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(path))
            )
        except FileNotFoundError:  # absence is an answer here
            return None
        return answer

    def age_s(self, path: str) -> float | None:
        head = self._head(path)
        if head is None:
            return None
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - head["LastModified"]).total_seconds())

    def write(self, path: str, data: bytes) -> None:
        self._call(path, lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(path), Body=data))

    def upload(self, path: str, source: Path) -> tuple[int, str]:
        """Multipart from 64 MiB on; a failed one is aborted, so that no parts stay behind."""
        measured = sha256_of(file_chunks(source))
        self._call(path, lambda: self._client.upload_file(str(source), self._bucket, self._key(path), Config=TRANSFER))
        return measured

    def put_if_absent(self, path: str, data: bytes) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
                return True
            except (ClientError, BotoCoreError) as error:
                # 412 may answer our own retry, and a put that timed out may have arrived: what is there decides.
                there = self.read_or_none(path) if _is_unsure(error) else None
                if there is not None:
                    return there == data
                if _status(error) != 409 or attempt == ATTEMPTS:  # 409: another put is under way, and may yet fail
                    raise _os_error(f"{self.url}/{path}", error) from error
                _pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def list(self, prefix: str, recursive: bool = False) -> Names:
        pages = self._pages(prefix, "" if recursive else "/")
        keys = (entry["Key"] for page in pages for entry in page.get("Contents", []))
        return sorted(key[len(self._key("")) :] for key in keys if not key.endswith("/"))

    def folders(self, prefix: str) -> Names:
        pages = self._pages(prefix, "/")
        return sorted(
            entry["Prefix"].rstrip("/").rsplit("/", 1)[-1] for p in pages for entry in p.get("CommonPrefixes", [])
        )

    def _pages(self, prefix: str, delimiter: str) -> Pages:
        folder = self._key(prefix.rstrip("/") + "/") if prefix.strip("/") else self._key("")
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=folder, Delimiter=delimiter
        )
        return self._call(prefix, lambda: list(pages))

    def delete(self, path: str) -> None:
        self._call(path, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(path)))

    def sweep(self, prefix: str, keep: Callable[[str], bool]) -> None:
        super().sweep(prefix, keep)
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._key(f"{prefix}/")
        )
        for upload in self._call(prefix, lambda: [begun for page in pages for begun in page.get("Uploads", [])]):
            if not keep(upload["Key"][len(self._key("")) :]):
                self._call(prefix, partial(self._abort, upload))

    def _abort(self, upload: dict[str, Any]) -> None:
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def probe(self) -> None:
        if self._attempts == ATTEMPTS:  # a wrong name should not take a minute to be told
            BucketFiles(self.url, attempts=2, **self.options).probe()
        else:
            super().probe()

    def look(self) -> None:
        if self._attempts == ATTEMPTS:
            BucketFiles(self.url, attempts=2, **self.options).look()
        else:
            super().look()

    def remedy(self, error: OSError) -> str:
        cause = error.__cause__
        advice = REMEDIES.get(
            _code(cause) if isinstance(cause, Exception) else "", f"{_RIGHTS}, and check `endpoint` and `region`"
        )
        return f"cannot be used at {self._endpoint or 'AWS'} ({error}): {advice}"


def _split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise ValueError(f"store = s3://...@...: credentials do not belong into a URL; {_LOGIN}")
    if not bucket:
        raise ValueError(f"store = {url!r}: names no bucket; give s3://bucket/prefix")
    return bucket, prefix.strip("/")


def _pause(attempt: int) -> None:
    time.sleep(min(0.05 * 2**attempt, 2))


def _status(error: Exception) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"]) if isinstance(error, ClientError) else 0


def _code(error: Exception) -> str:
    """S3's code (NoSuchKey), the status where the answer had no body, or botocore's name for a failure on our side."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else type(error).__name__


def _is_unsure(error: Exception) -> bool:
    """Whether the file may be there all the same."""
    return isinstance(error, HTTPClientError) or _status(error) in (409, 412) or _status(error) >= 500


def _os_error(path: str, error: Exception) -> OSError:
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, ClientError):
        error = error.__context__
    code = _code(error)
    if code in ("NoSuchKey", "404"):
        return FileNotFoundError(f"{path}: {error}")
    if code in DENIED or isinstance(error, NoCredentialsError | PartialCredentialsError):
        return PermissionError(f"{path}: {error}")
    return OSError(f"{path}: {error}")
