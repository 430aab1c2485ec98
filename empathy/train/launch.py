"""A session as plain processes on this machine: started, listened to, and ended together. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from empathy.stages import Stage, from_json, to_json
from empathy.train.group import cores, free_port
from empathy.train.placement import Placement

Report = Callable[[Stage, int, int], None]
ENDING_S = 10.0
"""How long a process is given to end before it is killed."""


def run(
    stages: Sequence[Stage],
    store_url: str,
    store_options: Mapping[str, Any],
    placement: Placement,
    progress: Report | None = None,
) -> None:
    """Make `stages` with `placement.workers` processes of their own. Raises RuntimeError when one of them fails; the
    rest is ended.

    What was committed stays: the same call goes on from there.
    """
    with tempfile.TemporaryDirectory(prefix="empathy-launch-") as folder:
        order = Path(folder) / "session.json"
        order.write_text(
            json.dumps(
                {
                    "stages": to_json(stages),
                    "store": store_url,
                    "options": dict(store_options),
                    "placement": placement.as_json(),
                }
            )
        )
        read, write = os.pipe()
        port = free_port()
        ranks = [_start(rank, placement, order, port, write) for rank in range(placement.workers)]
        os.close(write)
        listener = threading.Thread(target=_listen, args=(read, {s.key: s for s in stages}, progress), daemon=True)
        listener.start()
        try:
            _watch(ranks)
        finally:
            _end(ranks)
            listener.join(ENDING_S)


def _start(rank: int, placement: Placement, order: Path, port: int, pipe: int) -> subprocess.Popen[bytes]:
    workers = placement.workers
    threads = placement.threads or max(1, cores() // workers)
    env = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "empathy.train", "--rank-of", str(order), "--progress-fd", str(pipe)]
    return subprocess.Popen(command, env=env, pass_fds=[pipe])


def _listen(pipe: int, stages: Mapping[str, Stage], progress: Report | None) -> None:
    """Until every process has closed its end of the pipe."""
    with os.fdopen(pipe) as lines:
        for line in lines:
            key, done, total = json.loads(line)
            if progress:
                progress(stages[key], done, total)


def _watch(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [(i, code) for i, code in enumerate(codes) if code]
        if failed:
            rank, code = failed[0]
            raise RuntimeError(
                f"training process {rank} of {len(ranks)} ended with exit code {code}; its reason stands above. "
                f"What was finished or saved "
                "stays: start again to go on"
            )
        if all(code == 0 for code in codes):
            return
        time.sleep(0.1)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + ENDING_S
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # hangs in a collective whose other side is gone
            rank.kill()
            rank.wait()


def rank_main(order: Path, pipe: int) -> None:
    """What each process of `run` does. It ends with the process that started it."""
    from empathy.store import Store

    _end_with_parent(os.getppid())
    data = json.loads(order.read_text())
    placement = Placement(**data["placement"])

    def progress(stage: Stage, done: int, total: int) -> None:
        os.write(pipe, (json.dumps([stage.key, done, total]) + "\n").encode())

    from empathy.train import session

    session.run(from_json(data["stages"]), Store.open(data["store"], **data["options"]), placement, progress)


def _end_with_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
