"""Leases: one writer a stage, on any store, without a server.

    KIND/KEY/lease/000001.json   epoch 1 was taken, and by which process: made by one conditional put, never changed
    KIND/KEY/lease/000001.beat   its holder lives (rewritten every quarter of the time to live), or has released it

A holder that released its lease, whose process is gone (seen at once on its own machine), or that has not beaten for
its time to live is superseded by the next epoch. One that wakes up later is fenced: `Writer.commit` and `Lease.check`
see the newer epoch. Ages are told by the clock of the store, so machines need not agree on the time. A lease saves
double work; that there is one artifact rests not on it but on the conditional put of the manifest.

A record that cannot be read (a disk was full, a copy of the store is damaged) names nobody: it is superseded when it,
and its beat, are older than `TTL_S`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from empathy.files import Files
from empathy.stages import Stage
from empathy.store import FencedError, Store, Writer, newest_epoch

TTL_S = 60.0
"""Longer than a process that trains may be without Python: imports and compilers hold it for tens of seconds."""
POLL_S = 2.0
_FIELDS = {"host": str, "pid": int, "machine": str | None, "started": str | None, "ttl_s": int | float}
"""What a lease's record holds."""


class LeaseHeldError(RuntimeError):
    """Another process that lives is making this stage."""


class Lease:
    """The right to make `stage`, from `try_lease` until the end of the `with` block or of this process."""

    def __init__(self, store: Store, stage: Stage, epoch: int, ttl_s: float):
        self.store, self.stage, self.epoch, self.ttl_s = store, stage, epoch, ttl_s
        self.lost = False
        """Set by a heartbeat that found a newer epoch: stop working. `check` asks anew."""
        self.beaten_at_s = time.monotonic()
        self._released = False
        self._lock = threading.Lock()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def writer(self) -> Writer:
        """A writer that is fenced with this lease."""
        return self.store.writer(self.stage, self.epoch)

    def check(self) -> None:
        """Raises FencedError when another process has taken over."""
        newest = newest_epoch(self.store.files, _folder(self.stage))
        if newest > self.epoch:
            self.lost = True
            raise FencedError(
                f"{self.stage!r}: epoch {newest} has taken over from our {self.epoch}; stop working on it"
            )

    def beat(self) -> None:
        """Say that we live. After a silence longer than the time to live, first look whether we were superseded."""
        with self._lock:
            if self._released or self.lost:
                return
            now_s = time.monotonic()
            if now_s - self.beaten_at_s > self.ttl_s:
                with suppress(FencedError):  # `lost` says it to the thread that works
                    self.check()
            if not self.lost:
                self._say({"released": False})
                self.beaten_at_s = now_s

    def release(self) -> None:
        """Give the lease back, so that nobody waits for the time to live."""
        _heart.remove(self)
        with self._lock:
            self._released = True
            with suppress(OSError):  # a courtesy: without it the lease ends with its time to live
                self._say({"released": True})

    def drop(self) -> None:
        """Stop beating, and write nothing: its stage is committed, and nobody waits for the lease of what is there."""
        _heart.remove(self)
        with self._lock:
            self._released = True

    def _say(self, state: dict[str, Any]) -> None:
        self.store.files.write(f"{_folder(self.stage)}/lease/{self.epoch:06d}.beat", json.dumps(state).encode())


class _Heart:
    """One thread that beats for all leases of this process; it ends with the last of them."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease heartbeat", daemon=True)
                self._thread.start()
        self._changed.set()

    def remove(self, lease: Lease) -> None:
        with self._lock:
            self._leases = [other for other in self._leases if other is not lease]
        self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            with self._lock:
                leases = list(self._leases)
                if not leases:
                    self._thread = None
                    return
            for lease in leases:
                if time.monotonic() - lease.beaten_at_s >= lease.ttl_s / 4:
                    with suppress(OSError):  # the next may come through, or we are superseded
                        lease.beat()
            self._changed.wait(min(lease.ttl_s for lease in leases) / 8)


_heart = _Heart()


def try_lease(store: Store, stage: Stage, ttl_s: float = TTL_S) -> Lease | None:
    """The lease of `stage`, with its heart beating, or None while another process that lives holds it.

    `ttl_s` is how long this process may be silent before others may take over.
    """
    files, folder = store.files, _folder(stage)
    newest = newest_epoch(files, folder)
    if newest and not _is_free(files, folder, newest):
        return None
    record = process_identity() | {"nonce": uuid.uuid4().hex, "ttl_s": ttl_s}
    if not files.put_if_absent(f"{folder}/lease/{newest + 1:06d}.json", json.dumps(record, sort_keys=True).encode()):
        return None  # somebody was faster
    lease = Lease(store, stage, newest + 1, ttl_s)
    _heart.add(lease)
    return lease


@contextmanager
def lease(store: Store, stage: Stage, ttl_s: float = TTL_S, wait: bool = True) -> Iterator[Lease | None]:
    """The lease of `stage` for the block, or None when its artifact is there.

    While another process makes it, waits until it has, or has stopped trying; with `wait` False raises LeaseHeldError,
    which names that process.
    """
    while not store.done(stage):
        if (held := try_lease(store, stage, ttl_s)) is not None:
            with held:
                yield None if store.done(stage) else held  # the former holder may have finished in between
            return
        if not wait:
            raise LeaseHeldError(f"{stage!r} is being made by {holder(store, stage)}; wait for it, or end it")
        time.sleep(min(ttl_s / 4, POLL_S))
    yield None


def holder(store: Store, stage: Stage) -> str:
    """Who took the newest lease, for people: "process 123 on host a"; "nobody" when there was none."""
    newest = newest_epoch(store.files, _folder(stage))
    if not newest:
        return "nobody"
    path = f"{_folder(stage)}/lease/{newest:06d}.json"
    record = _record(store.files, path)
    return "process {pid} on host {host}".format(**record) if record else f"somebody whose {path} cannot be read"


def is_free(store: Store, stage: Stage) -> bool:
    """Whether `try_lease` would be given it now: nobody who lives holds it. Changes nothing."""
    newest = newest_epoch(store.files, _folder(stage))
    return not newest or _is_free(store.files, _folder(stage), newest)


def _folder(stage: Stage) -> str:
    return f"{stage.kind}/{stage.key}"


def _is_free(files: Files, folder: str, epoch: int) -> bool:
    """Whether the holder of `epoch` has released it, is dead, or has been silent for its time to live."""
    taken, beat = f"{folder}/lease/{epoch:06d}.json", f"{folder}/lease/{epoch:06d}.beat"
    record, said = _record(files, taken), files.read_or_none(beat)
    if (said and _object(said).get("released") is True) or (record and is_gone(record)):
        return True
    age_s = files.age_s(beat if said is not None else taken)
    # In the future: the clock was set back, or the store came from elsewhere. Who lives soon beats at today's time.
    return age_s is not None and abs(age_s) > (record["ttl_s"] if record else TTL_S)


def _record(files: Files, path: str) -> dict[str, Any] | None:
    """Who took a lease; None where the file does not tell."""
    record = _object(files.read_or_none(path) or b"")
    return record if all(isinstance(record.get(name), kind) for name, kind in _FIELDS.items()) else None


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # half written, or damaged: it says nothing
        return {}
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- who is alive


def process_identity() -> dict[str, Any]:
    """What tells this process from every other: a number can come again, in another container or after a restart."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": _machine(), "started": _started(pid)}


def is_gone(record: dict[str, Any]) -> bool:
    """Whether the process of a `process_identity` has ended; False when it ran where we cannot look."""
    return (
        record["machine"] is not None
        and record["machine"] == _machine()
        and _started(record["pid"]) != record["started"]
    )


def _machine() -> str | None:
    """This boot of this machine and this container's view of its processes; None where /proc does not tell."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: silence alone will tell
        return None


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None when there is none, or only its zombie (man 5 proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # gone, perhaps while we looked
        return None
    state, started = fields[0], fields[19]  # fields 3 and 22: the name before them may hold spaces
    return None if state in "ZX" else started
