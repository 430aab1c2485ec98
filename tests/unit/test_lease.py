"""Leases between processes of one machine: who is gone is seen at once, who is silent by the clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.lease import TTL_S, LeaseHeldError, holder, is_free, is_gone, lease, process_identity, try_lease
from empathy.specs import ReportSpec
from empathy.stages import Stage
from empathy.store import FencedError, Store, newest_epoch

ROOT = Path(__file__).parents[2]
ONE = Stage(ReportSpec())

# Takes the lease, says so, and on a line of input tries to commit; the answer is what became of it.
HOLD = """
import sys
from cluster.lease import try_lease
from empathy.specs import ReportSpec
from empathy.stages import Stage
from empathy.store import FencedError, Store
held = try_lease(Store.open(sys.argv[1]), Stage(ReportSpec()), ttl_s=float(sys.argv[2]))
writer = held.writer()
writer.add_file("who", b"child")
print(held.epoch, flush=True)
sys.stdin.readline()
try:
    writer.commit()
except FencedError as error:
    print("fenced:", error, flush=True)
else:
    print("committed", flush=True)
"""


@contextmanager
def other_process(store: Store, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, store.url, str(ttl_s)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line_of(process)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def test_a_killed_holder_is_superseded_at_once(store: Store) -> None:
    with other_process(store, ttl_s=3600) as other:
        assert line_of(other) == "1"
        assert try_lease(store, ONE) is None
        other.kill()
        other.wait()
        taken = try_lease(store, ONE)
        assert taken is not None
        with taken:
            assert taken.epoch == 2


def test_a_stopped_holder_is_superseded_and_fenced_when_it_wakes(store: Store) -> None:
    with other_process(store, ttl_s=1) as other:
        assert line_of(other) == "1"
        other.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        with lease(store, ONE, ttl_s=60) as taken:
            assert taken is not None
            assert taken.epoch == 2
            assert time.monotonic() - began_s < 20
            other.send_signal(signal.SIGCONT)
            assert go_on(other).startswith("fenced:")
            assert not store.done(ONE)


def test_a_live_holder_keeps_its_lease_beyond_its_time_to_live(store: Store) -> None:
    with other_process(store, ttl_s=1) as other:
        assert line_of(other) == "1"
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            assert try_lease(store, ONE) is None
            time.sleep(0.1)
        assert go_on(other) == "committed"
    assert store.get(ONE).read_file("who") == b"child"


def test_a_heart_that_wakes_late_says_that_the_lease_is_lost(store: Store) -> None:
    held = try_lease(store, ONE, ttl_s=60)
    assert held is not None
    store.files.put_if_absent(f"report/{ONE.key}/lease/000002.json", json.dumps(process_identity()).encode())
    held.beat()
    assert not held.lost  # it was never silent: no look is needed
    held.beaten_at_s -= 61
    held.beat()
    assert held.lost
    with pytest.raises(FencedError, match="epoch 2"):
        held.check()
    held.release()


def test_one_of_many_threads_gets_it(store: Store) -> None:
    barrier, won = threading.Barrier(8), []

    def take() -> None:
        barrier.wait()
        if (held := try_lease(store, ONE)) is not None:
            won.append(held)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [held.epoch for held in won] == [1]
    won[0].release()


def test_the_heart_stops_with_the_last_lease(store: Store) -> None:
    stages = [Stage(ReportSpec(seed=k)) for k in range(20)]
    leases = [try_lease(store, stage) for stage in stages]
    hearts = [t for t in threading.enumerate() if t.name == "lease heartbeat"]
    assert len(hearts) == 1  # one thread for twenty
    for held in leases:
        assert held is not None
        held.release()
    hearts[0].join(timeout=10)
    assert not hearts[0].is_alive()
    again = try_lease(store, stages[0])
    assert again is not None
    assert again.epoch == 2
    again.release()


def test_a_finished_stage_needs_no_lease(store: Store) -> None:
    store.writer(ONE).commit()
    with lease(store, ONE) as held:
        assert held is None
    assert store.files.list(f"report/{ONE.key}/lease") == []


def test_an_error_gives_the_lease_back(store: Store) -> None:
    with pytest.raises(KeyError), lease(store, ONE):
        raise KeyError("ours")
    with lease(store, ONE) as held:
        assert held is not None
        assert held.epoch == 2


DAMAGED = [b"", b'{"host": "a', b"{}", b"[1]", b"null", b"\xff\x00", b'{"host": "a", "pid": "x", "ttl_s": 1}']


@pytest.mark.parametrize("data", DAMAGED)
def test_a_record_that_cannot_be_read_is_held_until_it_is_old(data: bytes, store: Store, tmp_path: Path) -> None:
    file = tmp_path / f"report/{ONE.key}/lease/000001.json"
    store.files.write(f"report/{ONE.key}/lease/000001.json", data)
    assert not is_free(store, ONE)
    assert try_lease(store, ONE) is None
    assert "lease/000001.json cannot be read" in holder(store, ONE)
    with pytest.raises(LeaseHeldError, match=r"000001\.json cannot be read"), lease(store, ONE, wait=False):
        raise AssertionError("not reached")
    old_s = time.time() - TTL_S - 1
    os.utime(file, (old_s, old_s))
    with lease(store, ONE, wait=False) as taken:
        assert taken is not None
        assert taken.epoch == 2


def test_a_lease_from_the_future_does_not_hold_until_then(store: Store, tmp_path: Path) -> None:
    """The store came from a machine whose clock was ahead, or the clock was set back."""
    record = {"host": "elsewhere", "pid": 1, "machine": "elsewhere x", "started": "1", "ttl_s": 60}
    folder = tmp_path / "report" / ONE.key / "lease"
    folder.mkdir(parents=True)
    for name, data in (("000001.json", record), ("000001.beat", {"released": False})):
        (folder / name).write_text(json.dumps(data))
    assert not is_free(store, ONE)
    for file in folder.iterdir():
        os.utime(file, (time.time() + 86_400, time.time() + 86_400))
    assert is_free(store, ONE)
    with lease(store, ONE, wait=False) as held:
        assert held is not None
        assert held.epoch == 2


def test_who_beats_lives_though_its_record_is_damaged(store: Store, tmp_path: Path) -> None:
    folder = f"report/{ONE.key}/lease"
    store.files.write(f"{folder}/000001.json", b"")
    old_s = time.time() - TTL_S - 1
    os.utime(tmp_path / folder / "000001.json", (old_s, old_s))
    store.files.write(f"{folder}/000001.beat", b"{")
    assert not is_free(store, ONE)
    store.files.write(f"{folder}/000001.beat", json.dumps({"released": True}).encode())
    assert is_free(store, ONE)


def test_files_that_are_no_leases_are_not_looked_at(store: Store) -> None:
    for name in ("notanumber.json", "7.json", "0000009.json", "²²²²²².json", "-00001.json", "000003.json.bak"):
        store.files.write(f"report/{ONE.key}/lease/{name}", b"x")
    assert newest_epoch(store.files, f"report/{ONE.key}") == 0
    with lease(store, ONE) as held:
        assert held is not None
        assert held.epoch == 1


def test_who_is_gone() -> None:
    me = process_identity()
    assert not is_gone(me)
    assert is_gone(me | {"started": "1"})  # the number was used again
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.send_signal(signal.SIGKILL)
        time.sleep(0.5)
        assert is_gone(me | {"pid": child.pid})  # a zombie does no work
    assert not is_gone(me | {"started": "1", "machine": "elsewhere"})
    assert not is_gone(me | {"started": "1", "machine": None})
