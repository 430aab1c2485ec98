"""What the store promises on a folder beyond the tests it shares with a bucket (tests/whole/test_store_s3.py)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from empathy.records import Reply
from empathy.specs import ReportSpec
from empathy.stages import Stage
from empathy.store import Artifact, CorruptError, Store

ROOT = Path(__file__).parents[2]
ONE = Stage(ReportSpec())


def replies(part: int, rows: int = 3) -> list[Reply]:
    return [Reply(f"d{part}-{k}", "m", f"text {part} {k}") for k in range(rows)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


WRITE_AND_COMMIT = """
import sys
from tests.unit.test_store import ONE, Reply, Store, replies
store = Store.open(sys.argv[1])
writer = store.writer(ONE)
for part in range(20):
    if part not in writer.finished_indices():
        writer.write_records(part, replies(part), Reply)
        print(part, flush=True)
writer.commit()
"""


def run_and_kill(store: Store, after: int) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITE_AND_COMMIT, store.url]
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)


def test_killed_at_any_time_it_ends_as_unbroken(store: Store) -> None:
    for after in (1, 9):
        run_and_kill(store, after)
        assert not store.done(ONE)
    begun = store.writer(ONE).finished_indices()
    assert len(begun) >= 10
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    last = subprocess.run(
        [sys.executable, "-c", WRITE_AND_COMMIT, store.url],
        env=env,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert {int(part) for part in last.stdout.split()} == set(range(20)) - begun  # nothing was made twice
    assert list(store.get(ONE).read(Reply)) == [reply for part in range(20) for reply in replies(part)]


def test_retrying_a_part_does_not_touch_the_one_that_was_marked(store: Store) -> None:
    """The mark may have arrived though its put failed: the second attempt's rows must go elsewhere."""
    writer = store.writer(ONE)
    assert writer.write_records(0, replies(0), Reply)
    assert not writer.write_records(0, replies(9), Reply)
    writer.commit()
    assert list(store.get(ONE).read(Reply)) == replies(0)


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", ""])
def test_names_that_lead_out_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        store.writer(ONE).add_file(name, b"")
    writer = store.writer(ONE)
    writer.add_file("fine", b"x")
    writer.commit()
    manifest = dict(store.get(ONE).manifest)
    hostile = Artifact(store.files, f"report/{ONE.key}", manifest | {"files": {name: manifest["files"]["fine"]}})
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        hostile.download(tmp_path / "target")


def test_folders_are_added_whole(store: Store, tmp_path: Path) -> None:
    for path in ("a.json", "sub/b.bin"):
        (tmp_path / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / path).write_text(path)
    writer = store.writer(ONE)
    writer.add_folder(tmp_path / "src", prefix="adapter/")
    writer.commit()
    artifact = store.get(ONE)
    assert set(artifact.files) == {"adapter/a.json", "adapter/sub/b.bin"}
    target = artifact.download(tmp_path / "t")
    assert (target / "adapter/sub/b.bin").read_text() == "sub/b.bin"
    (target / "adapter/a.json").unlink()  # somebody tidied up
    assert (artifact.download(target) / "adapter/a.json").read_text() == "a.json"


def test_a_file_that_is_gone_from_the_store_is_named_with_the_remedy(store: Store, tmp_path: Path) -> None:
    writer = store.writer(ONE)
    writer.add_file("w", b"weights")
    writer.commit()
    artifact = store.get(ONE)
    (tmp_path / "store" / artifact.folder / artifact.files["w"].path).unlink()
    with pytest.raises(CorruptError, match=f"it is missing.*delete the folder .*{artifact.folder} and run again"):
        artifact.download(tmp_path / "t")


def _download(artifact: Artifact, target: Path) -> None:
    artifact.download(target)


def test_several_processes_download_into_one_folder(store: Store, tmp_path: Path) -> None:
    content = os.urandom(30_000_000)
    writer = store.writer(ONE)
    writer.add_file("w", content)
    writer.commit()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_download, args=(store.get(ONE), tmp_path / "t")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "t/w").read_bytes() == content
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [f".{ONE.key}", "w"]


def test_numbers_that_are_unknown_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.writer(ONE).commit({"loss": float("nan")})
    assert not store.done(ONE)


def test_a_writer_reads_each_mark_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = store.writer(ONE)
    for part in range(5):
        writer.write_records(part, replies(part), Reply)
    read: list[str] = []
    original = store.files.read_many
    monkeypatch.setattr(store.files, "read_many", lambda paths: read.extend(paths) or original(paths))
    writer.commit()
    assert read == []  # it wrote them itself
    later = store.writer(ONE)
    assert len(later.finished_parts()) == len(later.finished_parts()) == len(read) == 5


def test_commit_time_is_for_people_only(store: Store) -> None:
    """Two artifacts of one stage differ in who made them, never in key or identity."""
    store.writer(ONE).commit(made={"commit": "abc"})
    first = store.get(ONE).manifest
    store.discard("report", ONE.key)
    time.sleep(1.1)
    store.writer(ONE).commit()
    second = store.get(ONE).manifest
    assert first["made"] != second["made"]
    assert (first["key"], first["identity"]) == (second["key"], second["identity"]) == (ONE.key, ONE.identity)


WHOLE = {
    "key": ONE.key,
    "identity": ONE.identity,
    "parts": [{"path": "p", "size": 1, "sha256": "0", "rows": 1, "counts": {}}],
    "files": {"w": {"path": "w", "size": 1, "sha256": "0"}},
    "meta": {},
    "made": {},
}


@pytest.mark.parametrize(
    "manifest",
    [
        {}, [1], None, "text", 3, {"identity": 1}, WHOLE | {"identity": {}}, WHOLE | {"identity": {"kind": "report"}},
        WHOLE | {"parts": {}}, WHOLE | {"parts": [{"path": "x"}]}, WHOLE | {"parts": [1]}, WHOLE | {"files": [1]},
        WHOLE | {"files": {"w": {"path": "w", "size": "large", "sha256": "0"}}}, WHOLE | {"meta": None},
        {name: value for name, value in WHOLE.items() if name != "made"},
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_corrupt(manifest: object, store: Store) -> None:
    store.files.write(f"report/{ONE.key}/artifact.json", json.dumps(manifest).encode())
    told = f"{store.url}/report/{ONE.key}/artifact.json is not readable .*: delete it and run again"
    with pytest.raises(CorruptError, match=told):
        store.get(ONE)
    with pytest.raises(CorruptError, match=told):
        list(store.artifacts())
    found: list[CorruptError] = []
    assert list(store.artifacts("report", found.append)) == []
    assert len(found) == 1


def test_a_manifest_of_the_right_shape_is_read(store: Store) -> None:
    store.files.write(f"report/{ONE.key}/artifact.json", json.dumps(WHOLE).encode())
    assert store.get(ONE).rows == 1


@pytest.mark.parametrize("mark", [b'{"path": "x"}', b"{}", b"[1]", b"null", b"", b'{"path": 1, "size": 1}'])
def test_a_mark_of_another_shape_is_corrupt(mark: bytes, store: Store) -> None:
    store.files.write(f"report/{ONE.key}/parts/00000.json", mark)
    store.files.write(f"report/{ONE.key}/parts/notes.json", b"not ours")
    writer = store.writer(ONE)
    for read in (writer.finished_parts, lambda: writer.part(0), writer.commit):
        with pytest.raises(CorruptError, match=f"{store.url}/report/{ONE.key}/parts/00000.json is not readable"):
            read()
