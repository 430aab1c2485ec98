"""Who writes to a ledger, and whether they still live.

`ledger/writers/NAME.json` says which process a writer is; `NAME.beat` is rewritten every few seconds. A writer is dead
when its process is gone (seen from the same machine: at once) or when its beat has not changed for `STALE_S` seconds
of the observer's own clock, so that clocks need not agree. A batch at a provider (`serving.batch_notes`) claims in
its own name, and lives as long as its note is open, with or without a process.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from empathy.artifact import CorruptError
from empathy.files import Files
from serving.batch_notes import is_batch, is_open
from serving.sound import parsed

FOLDER = "ledger/writers"
BEAT_S, STALE_S = 5.0, 60.0


def now_s() -> float:
    """Seconds that go on while the machine sleeps, where the system can tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def machine() -> str | None:
    """Names this boot of this machine and its process namespace; None where /proc cannot tell."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return None
    return f"{socket.gethostname()}/{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def process_start(pid: int) -> str | None:
    """When a living process started, in ticks since boot; None when there is none (or only a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # absence is the answer
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class Identity:
    """Which process a writer is; a machine of None is not known."""

    machine: str | None
    pid: int
    started: str | None


UNKNOWN = Identity(None, 0, None)


class Presence:
    """Our own beat, and what we know of the others'. `each_second` is called about once a second by the beating
    thread."""

    def __init__(self, files: Files, writer: str, each_second: Callable[[], None], stale_s: float = STALE_S):
        self._files, self.writer, self._each_second, self.stale_s = files, writer, each_second, stale_s
        self._identities: dict[str, Identity] = {}
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        self._looked: dict[str, float] = {}
        self._closed: set[str] = set()
        self._machine = machine()
        self._beats = 0
        self.beaten_at = now_s()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def fresh(self) -> bool:
        """False when others may be about to take us for dead."""
        return now_s() - self.beaten_at < self.stale_s / 3

    def announce(self) -> None:
        """Say who we are and start to beat; once."""
        if self._thread is None:
            me = Identity(self._machine, os.getpid(), process_start(os.getpid()))
            self.beat()
            self._files.put_if_absent(f"{FOLDER}/{self.writer}.json", json.dumps(asdict(me)).encode())
            self._thread = threading.Thread(target=self._beating, name="ledger-beat", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        started = now_s()
        self._beats += 1
        self._files.write(f"{FOLDER}/{self.writer}.beat", str(self._beats).encode())
        self.beaten_at = started

    def _beating(self) -> None:
        while not self._ended.wait(1.0):
            try:
                self._each_second()
                if now_s() - self.beaten_at >= BEAT_S:
                    self.beat()
            except OSError:  # the store is away: `fresh` turns False, and whoever sends next is told by `beat`
                continue

    def withdraw(self) -> None:
        """Stop beating and take our name off: for a writer that holds no claims any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            for name in (f"{self.writer}.json", f"{self.writer}.beat"):
                self._files.delete(f"{FOLDER}/{name}")
            self._thread = None

    def alive(self, writer: str) -> bool:
        """Whether a reply of `writer` may still come."""
        if writer == self.writer:
            return True
        if is_batch(writer):
            return self._is_open(writer)
        if writer not in self._identities:
            data = self._files.read_or_none(f"{FOLDER}/{writer}.json")
            if data is None:
                return False
            self._identities[writer] = self._identity(writer, data)
        them = self._identities[writer]
        if self._machine is not None and them.machine == self._machine and process_start(them.pid) != them.started:
            return False
        return self._beats_on(writer)

    def _identity(self, writer: str, data: bytes) -> Identity:
        """Who cannot be told any more lives as long as its beat goes on: it is a minute later that it is dead."""
        try:
            return parsed(Identity, data, self._files, f"{FOLDER}/{writer}.json", "delete it when no run is going on")
        except CorruptError:
            return UNKNOWN

    def _is_open(self, batch: str) -> bool:
        """Looked up every few seconds: a batch takes minutes at least."""
        now = now_s()
        if now - self._looked.get(batch, -BEAT_S) >= BEAT_S:
            self._looked[batch] = now
            if not is_open(self._files, batch):
                self._closed.add(batch)
        return batch not in self._closed

    def _beats_on(self, writer: str) -> bool:
        now = now_s()
        if now - self._looked.get(writer, -BEAT_S) >= BEAT_S:
            self._looked[writer] = now
            beat = self._files.read_or_none(f"{FOLDER}/{writer}.beat")
            if writer not in self._seen or self._seen[writer][0] != beat:
                self._seen[writer] = (beat, now)
        return now - self._seen[writer][1] < self.stale_s
