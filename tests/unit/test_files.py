"""A folder as a place for files: whole or absent, one winner, clean failures, refusals that name the remedy."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from empathy.files import CHUNK_BYTES, environment, open_files

ROOT = Path(__file__).parents[2]


def test_paths_and_listing(tmp_path: Path) -> None:
    files = open_files(str(tmp_path / "s"))
    assert files.list("") == files.list("a", recursive=True) == files.folders("a") == []
    for path in ("a/2", "a/1", "a/b/3", "c"):
        files.write(path, path.encode())
    assert files.list("") == ["c"]
    assert files.list("a") == ["a/1", "a/2"]
    assert files.list("", recursive=True) == ["a/1", "a/2", "a/b/3", "c"]
    assert (files.folders(""), files.folders("a")) == (["a"], ["b"])
    assert files.read_many(["a/1", "nothing", "c"]) == [b"a/1", None, b"c"]
    assert files.exist_many(["a/1", "a", "nothing"]) == [True, False, False]
    assert b"".join(files.chunks("a/b/3", 5, start=2)) == b"b/3"
    files.delete("a/1")
    files.delete("a/1")
    assert files.read_or_none("a/1") is None
    with pytest.raises(FileNotFoundError):
        files.read("a/1")


def test_age_is_told_by_the_place(tmp_path: Path) -> None:
    files = open_files(str(tmp_path))
    assert files.age_s("x") is None
    files.write("x", b"")
    os.utime(tmp_path / "x", (time.time() - 100, time.time() - 100))
    age_s = files.age_s("x")
    assert age_s is not None
    assert 99 < age_s < 110


def test_a_write_that_does_not_fit_names_its_file_and_leaves_none(tmp_path: Path) -> None:
    """A full disk as a limit on the size of files: neither tells the path of its own accord."""
    code = """
    import resource, sys
    from empathy.files import open_files
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    files = open_files(sys.argv[1])
    for put in (files.write, files.put_if_absent):
        try:
            put("a/b", bytes(2000))
        except OSError as error:
            print(error.filename, files.list("", recursive=True))
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/a/b []\n" * 2


def _race(url: str, who: int, start_at_s: float) -> None:
    files = open_files(url)
    time.sleep(max(0, start_at_s - time.time()))
    wins = [k for k in range(50) if files.put_if_absent(f"race/{k}", f"{who}".encode())]
    files.write(f"wins/{who}", json.dumps(wins).encode())


def test_of_many_processes_one_creates_each_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start_at_s = time.time() + 4
    racers = [context.Process(target=_race, args=(str(tmp_path), who, start_at_s)) for who in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    files = open_files(str(tmp_path))
    claimed = [(k, who) for who in range(3) for k in json.loads(files.read(f"wins/{who}"))]
    assert sorted(k for k, _ in claimed) == list(range(50))
    assert all(files.read(f"race/{k}") == f"{who}".encode() for k, who in claimed)


WRITE_FOR_EVER = """
import sys
from empathy.files import open_files
files = open_files(sys.argv[1])
data = bytes(20_000_000)
for k in range(1000):
    files.write(f"d/{k}", data)
    files.put_if_absent(f"p/{k}", data)
"""


@pytest.mark.parametrize("delay_s", [0.05, 0.11, 0.17])
def test_kill_9_leaves_whole_files_or_none(tmp_path: Path, delay_s: float) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], env=env) as writer:
        while not (tmp_path / "p").exists():
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
    files = open_files(str(tmp_path))
    sizes = {len(files.read(path)) for path in files.list("", recursive=True)}
    assert sizes == {20_000_000}


FILL_THE_DISK = """
import errno, os, sys
from empathy.files import open_files
files = open_files(sys.argv[1])
files.write("small", b"x")
for attempt in (lambda: files.write("d/1", bytes(8 << 20)), lambda: files.put_if_absent("d/2", bytes(8 << 20))):
    try:
        attempt()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise SystemExit("no error")
assert files.list("", recursive=True) == ["small"], files.list("", recursive=True)
assert os.listdir(sys.argv[1] + "/d") == [], "temporary files stay"
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = textwrap.dedent(f"""
        mount -t tmpfs -o size=2m none {tmp_path}/disk || exit 77
        exec {sys.executable} -c "$CODE" {tmp_path}/disk
    """)
    env = os.environ | {"PYTHONPATH": str(ROOT), "CODE": FILL_THE_DISK}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=env, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr


def test_a_failed_upload_leaves_nothing(tmp_path: Path) -> None:
    files = open_files(str(tmp_path / "s"))
    with pytest.raises(FileNotFoundError):
        files.upload("a/b", tmp_path / "absent")
    assert list((tmp_path / "s").rglob("*.tmp")) == files.list("", recursive=True) == []


def test_upload_streams(tmp_path: Path) -> None:
    """The peak of memory grows by two pieces at most for a file of twelve."""
    with open(tmp_path / "big", "wb") as stream:
        stream.truncate(12 * CHUNK_BYTES)
    code = (
        "import resource, sys; from pathlib import Path; from empathy.files import open_files\n"
        "peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "files = open_files(sys.argv[1]); files.probe(); before = peak_kib()\n"
        "print(*files.upload('x', Path(sys.argv[2])), peak_kib() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "big")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    size, digest, grown_kib = subprocess.run(
        command, env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(size) == 12 * CHUNK_BYTES
    assert (
        digest
        == subprocess.run(["sha256sum", tmp_path / "big"], capture_output=True, text=True, check=True).stdout[:64]
    )
    assert int(grown_kib) << 10 < 3 * CHUNK_BYTES


def test_probe_accepts_a_folder_and_leaves_nothing(tmp_path: Path) -> None:
    files = open_files(str(tmp_path / "new"))
    files.probe()
    assert files.list("", recursive=True) == []


def test_probe_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=rf"store = '{tmp_path}/file/x'.*name a folder you may write to"):
        open_files(str(tmp_path / "file" / "x")).probe()
    with pytest.raises(ValueError, match="store = '/proc/nothing'"):
        open_files("/proc/nothing").probe()


def test_urls_that_name_no_place_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown scheme; give a folder or s3://bucket/prefix"):
        open_files("gs://b/x")
    with pytest.raises(ValueError, match="names no bucket"):
        open_files("s3:///x")
    with pytest.raises(ValueError, match="begin with http"):
        open_files("s3://b/x", endpoint="localhost:9000")
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_files("s3://key:hunter2@b/x")
    assert "hunter2" not in str(caught.value)


def test_files_travel_as_url_and_options(tmp_path: Path) -> None:
    files = pickle.loads(pickle.dumps(open_files(str(tmp_path))))
    files.write("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_environment_names_every_clients_variable() -> None:
    assert environment({"endpoint": "http://h:1", "region": "r"}) == {
        "AWS_ENDPOINT_URL": "http://h:1",
        "AWS_ENDPOINT_URL_S3": "http://h:1",
        "AWS_REGION": "r",
        "AWS_DEFAULT_REGION": "r",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    assert not any("ENDPOINT" in name for name in environment({}))
