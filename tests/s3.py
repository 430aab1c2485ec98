"""A real S3 server for tests: Ceph's gateway over one disk in memory, on loopback, without root or containers.

It needs Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common (`absent()` says which are missing). The daemons
are children in the foreground that the kernel ends with us: a killed test run leaves nothing behind.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from empathy.store import Store

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
ACCESS, SECRET = "empathy-tests", "only-on-loopback"


def absent() -> str:
    """Why no server can be started here; empty when one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    packages = "radosgw ceph-mon ceph-osd ceph-common"
    return (
        f"no {', '.join(missing)} on PATH (Debian: apt-get install --no-install-recommends {packages})"
        if missing
        else ""
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running gateway. `environment` is what a process needs to reach it, `administer` runs radosgw-admin."""

    endpoint: str
    administer: Callable[..., str]

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}

    def client(self) -> Any:
        """A boto3 client of the tests' own, to look at the bucket behind the store's back."""
        import boto3

        keys = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, **keys)

    def stranger(self) -> dict[str, str]:
        """Keys of a new user who owns nothing."""
        name, secret = f"u{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
        self.administer(
            "user", "create", f"--uid={name}", f"--display-name={name}", f"--access-key={name}", f"--secret={secret}"
        )
        return {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": secret}

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"b{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


# One monitor, one disk in memory, one gateway; one placement group a pool, no replicas, no cluster network.
CONFIG = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {root}/keyring
mon data = {root}/mon
osd data = {root}/osd
run dir = {root}
admin socket = {root}/$name.sock
log file = {root}/$name.log
mon cluster log file = {root}/cluster.log
crash dir = {root}/crash
log to stderr = false
auth allow insecure global id reclaim = false
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 8589934592
osd class load list = *
osd class default list = *
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw run sync thread = false
rgw enable usage log = false
rgw dns name = localhost
"""
IDENTITIES = {  # who may do what, in the order they are added to the keyring
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw.test": {"mon": "allow rw", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}


class _Cluster:
    """The three daemons and the folder they live in."""

    def __init__(self, root: Path):
        self.root, self.port, self.fsid = root, free_port(), str(uuid.uuid4())
        self.mon_port = free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("mon", "osd", "crash"):
            (root / name).mkdir()
        (root / "ceph.conf").write_text(
            CONFIG.format(fsid=self.fsid, root=root, port=self.port, mon_port=self.mon_port), encoding="utf-8"
        )

    def call(self, *command: str, timeout_s: float = 60) -> str:
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.root / "ceph.conf")}

    def _spawn(self, *command: str) -> None:
        log = (self.root / f"{command[0]}.out").open("wb")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command, "-f"], env=self._environment(), stdout=log, stderr=log
                )
            )

    def start(self) -> None:
        keyring, monmap = str(self.root / "keyring"), str(self.root / "monmap")
        self.call("ceph-authtool", "--create-keyring", keyring)
        for name, caps in IDENTITIES.items():
            flags = [word for service, rights in caps.items() for word in ("--cap", service, rights)]
            self.call("ceph-authtool", keyring, "--gen-key", "-n", name, *flags)
        self.call(
            "monmaptool", "--create", "--addv", "m", f"[v2:127.0.0.1:{self.mon_port}]", "--fsid", self.fsid, monmap
        )
        self.call("ceph-mon", "--mkfs", "-i", "m", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-i", "m")
        disk = str(uuid.uuid4())
        self.call("ceph", "osd", "new", disk)
        self.call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._spawn("ceph-osd", "-i", "0")
        self._until(lambda: json.loads(self.call("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1)
        self.call(
            "radosgw-admin",
            "user",
            "create",
            "--uid=t",
            "--display-name=t",
            f"--access-key={ACCESS}",
            f"--secret={SECRET}",
        )
        self._spawn("radosgw", "-n", "client.rgw.test")
        self._until(self._answers)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:  # not listening yet
            return False

    def _until(self, condition: Callable[[], bool], limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self._daemons):
                logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in self.root.glob("*.out"))
                raise RuntimeError(f"the S3 server did not come up within {limit_s:.0f} s\n{logs}")
            time.sleep(0.2)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()  # its data is thrown away: nothing to flush
            daemon.wait()


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that lives as long as the block, up in about 10 s. Raises RuntimeError with the daemons' last words."""
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder:  # short: socket paths end at 107 bytes
        cluster = _Cluster(Path(folder))
        try:
            cluster.start()
            yield Server(f"http://127.0.0.1:{cluster.port}", functools.partial(cluster.call, "radosgw-admin"))
        finally:
            cluster.stop()


@functools.cache
def shared_server() -> Server:
    """One server for all tests of this process, ended with it."""
    return _at_exit.enter_context(running_server())


_at_exit = ExitStack()
atexit.register(_at_exit.close)


@pytest.fixture(scope="session")
def s3_server() -> Server:
    """Import it into a test module: `from tests.s3 import s3_server`."""
    if reason := absent():
        pytest.skip(reason)
    return shared_server()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind: what holds on a folder holds on a bucket."""
    if request.param == "folder":
        return Store.open(str(tmp_path / "store"))
    return open_bucket(request.getfixturevalue("s3_server"), monkeypatch)


def open_bucket(server: Server, monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> Store:
    """A store in a new bucket, reached through `endpoint` (a proxy's) or directly; credentials come by environment."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Store.open(f"s3://{server.bucket()}/some/prefix", endpoint=endpoint or server.endpoint)
