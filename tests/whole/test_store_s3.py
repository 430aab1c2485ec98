"""The store on a folder and on a real S3 server: the same tests on both, then what only a server can do wrong."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from cluster.lease import LeaseHeldError, lease, try_lease
from empathy.bucket import BucketFiles
from empathy.files import CHUNK_BYTES, environment
from empathy.records import Reply, Turn
from empathy.requests import Answer, Request
from empathy.specs import DialoguesSpec, Judge, PaperSplit, ReportSpec, VerdictsSpec
from empathy.stages import Stage
from empathy.store import CorruptError, FencedError, Store
from serving import uses
from serving.ledger import Ledger
from serving.spending import spending
from tests.faults import broken_body, condition_ignored, fault_proxy, lost_answer, reset_mid_put, status
from tests.s3 import SECRET, Server, open_bucket, s3_server, store

__all__ = ["s3_server", "store"]  # fixtures
REPLIES = [[Reply(f"d{part}-{k}", "m", f"text {k}") for k in range(3)] for part in range(4)]


def stage(seed: int = 0) -> Stage:
    return Stage(ReportSpec(seed=seed))


def filled(store: Store, one: Stage, **meta: Any) -> None:
    writer = store.writer(one)
    for part, replies in enumerate(REPLIES):
        assert writer.write_records(part, replies, Reply, {"cut off": part})
    writer.add_file("weights/a.bin", b"alpha")
    writer.commit(meta)


# ---------------------------------------------------------------- both kinds


def test_what_is_written_is_read(store: Store) -> None:
    one = stage()
    assert store.find(one.kind, one.key) is None
    assert not store.done(one)
    with pytest.raises(FileNotFoundError, match=one.key[:8]):
        store.get(one)
    filled(store, one, loss=0.5)
    artifact = store.get(one)
    assert list(artifact.read(Reply)) == [reply for part in REPLIES for reply in part]
    assert list(artifact.read(Reply, part=2)) == REPLIES[2]
    assert (artifact.rows, artifact.counts, artifact.meta) == (12, {"cut off": 6}, {"loss": 0.5})
    assert artifact.read_file("weights/a.bin") == b"alpha"
    assert artifact.identity == one.identity
    assert store.done(one)


def test_spending_and_uses_are_read_from_either(store: Store) -> None:
    for name, n in (("one", 3), ("two", 2)):
        with Ledger(store.files, experiment=name) as kept:
            for k in range(n):
                kept.record(Request("p", name, (Turn("user", f"{k}"),)), Answer("hi", tokens_in=7, tokens_out=1))
    sums = {r["experiment"]: (r["requests"], r["tokens_in"]) for r in spending(store.files).iter_rows(named=True)}
    assert sums == {"one": (3, 21), "two": (2, 14)}
    judged = Stage(VerdictsSpec(judge=Judge(provider="p", model="m", template="t")))
    for name in ("one", "one", "two"):
        uses.note(store.files, name, [judged, stage()])
    assert uses.uses(store.files) == {name: {f"verdicts/{judged.key}": 1} for name in ("one", "two")}


def test_nothing_is_there_before_commit(store: Store) -> None:
    writer = store.writer(stage())
    writer.write_records(0, REPLIES[0], Reply)
    writer.add_file("a", b"1")
    assert not store.done(stage())
    assert list(store.artifacts()) == []


def test_a_second_writer_goes_on_where_the_first_was_killed(store: Store) -> None:
    first = store.writer(stage())
    first.write_records(0, REPLIES[0], Reply)
    first.write_records(2, REPLIES[2], Reply)
    second = store.writer(stage())
    assert second.finished_indices() == {0, 2}
    assert {k: file.rows for k, file in second.finished_parts().items()} == {0: 3, 2: 3}
    assert not second.write_records(0, REPLIES[3], Reply)  # other rows: those of the first stay
    assert second.write_records(1, REPLIES[1], Reply)
    second.commit()
    assert list(store.get(stage()).read(Reply)) == REPLIES[0] + REPLIES[1] + REPLIES[2]
    kept = [p for p in store.files.list(f"report/{stage().key}") if p.endswith(".parquet")]
    assert len(kept) == 3  # the loser took its rows away again


def test_a_gap_between_parts_is_our_own_mistake(store: Store) -> None:
    writer = store.writer(stage())
    writer.write_records(1, REPLIES[1], Reply)
    with pytest.raises(AssertionError, match="gap"):
        writer.commit()


def test_of_many_writers_one_wins_and_the_others_are_told(store: Store) -> None:
    writers = [store.writer(stage()) for _ in range(8)]
    for k, writer in enumerate(writers):
        writer.add_file("who", str(k).encode())
    barrier = threading.Barrier(len(writers))

    def commit(k: int) -> bool:
        barrier.wait()
        try:
            writers[k].commit()
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(writers)) as pool:
        won = list(pool.map(commit, range(len(writers))))
    assert won.count(True) == 1
    assert store.get(stage()).read_file("who") == str(won.index(True)).encode()


def test_committing_twice_is_safe(store: Store) -> None:
    """After a lost answer a caller tries again: the manifest that is there has our nonce."""
    writer = store.writer(stage())
    writer.add_file("a", b"1")
    writer.commit()
    time.sleep(1.1)  # another time stamp, so another text
    writer.commit()
    with pytest.raises(FileExistsError, match="another writer"):
        store.writer(stage()).commit()


def test_listing_and_finished(store: Store) -> None:
    done, begun, other = stage(1), stage(2), Stage(DialoguesSpec(source="jsonl", digest="0", split=PaperSplit()))
    filled(store, done)
    filled(store, other)
    store.writer(begun).write_records(0, REPLIES[0], Reply)
    assert [a.key for a in store.artifacts("report")] == [done.key]
    assert {a.kind for a in store.artifacts()} == {"report", "dialogues"}
    assert store.finished([done, begun, other, stage(3)]) == {done.key, other.key}
    store.discard(done.kind, done.key)
    assert store.finished([done, other]) == {other.key}
    assert store.files.list(f"report/{done.key}", recursive=True) == []


def test_large_files_stream_both_ways(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    block = os.urandom(1 << 20)
    with open(source, "wb") as stream:  # 5 pieces and a bit: multipart on a bucket
        for k in range(81):
            stream.write(bytes([k]) + block)
    writer = store.writer(stage())
    writer.add_file("model.safetensors", source)
    writer.commit()
    artifact = store.get(stage())
    assert artifact.files["model.safetensors"].size == source.stat().st_size > 5 * CHUNK_BYTES
    assert artifact.files["model.safetensors"].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    target = artifact.download(tmp_path / "target")
    assert (target / "model.safetensors").read_bytes() == source.read_bytes()


def test_downloads_resume_and_verify(store: Store, tmp_path: Path) -> None:
    content = os.urandom(CHUNK_BYTES + 1000)
    writer = store.writer(stage())
    writer.add_file("sub/w.bin", content)
    writer.commit()
    artifact = store.get(stage())
    folder = tmp_path / "t" / "sub"
    folder.mkdir(parents=True)
    partial = folder / f".w.bin.{artifact.files['sub/w.bin'].sha256[:16]}.part"
    partial.write_bytes(content[:5000])  # where a killed download had come to
    artifact.download(tmp_path / "t")
    assert (folder / "w.bin").read_bytes() == content
    assert not partial.exists()

    (folder / "w.bin").unlink()
    partial.write_bytes(b"x" * 5000)  # what a power cut left
    artifact.download(tmp_path / "t")
    assert (folder / "w.bin").read_bytes() == content


def test_a_changed_byte_is_refused_with_the_remedy(store: Store, tmp_path: Path) -> None:
    filled(store, stage())
    artifact = store.get(stage())
    for file in (artifact.parts[1], artifact.files["weights/a.bin"]):
        path = f"{artifact.folder}/{file.path}"
        data = bytearray(store.files.read(path))
        data[len(data) // 2] ^= 1
        store.files.write(path, bytes(data))
    for use in (
        lambda: list(artifact.read(Reply)),
        lambda: artifact.read_file("weights/a.bin"),
        lambda: artifact.download(tmp_path / "t"),
    ):
        with pytest.raises(CorruptError, match=f"delete the folder .*{artifact.folder} and run again"):
            use()
    assert not (tmp_path / "t/weights/a.bin").exists()
    store.files.delete(f"{artifact.folder}/{artifact.parts[0].path}")
    with pytest.raises(CorruptError, match="missing"):
        artifact.table(0)


def test_a_changed_manifest_is_refused(store: Store) -> None:
    filled(store, stage(1))
    manifest = store.files.read(f"report/{stage(1).key}/artifact.json")
    store.files.write(f"report/{stage(2).key}/artifact.json", manifest)  # somebody copied a folder
    with pytest.raises(CorruptError, match="another key"):
        store.get(stage(2))
    store.files.write(f"report/{stage(1).key}/artifact.json", manifest[:100])
    with pytest.raises(CorruptError, match="not readable"):
        store.get(stage(1))


def _commit_in_child(store: Store, seed: int) -> None:
    filled(store, stage(seed))


def test_stores_and_artifacts_travel_to_other_processes(store: Store) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_commit_in_child, args=(store, 5))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    artifact = pickle.loads(pickle.dumps(Store.open(store.url, **store.options).get(stage(5))))
    assert list(artifact.read(Reply, 1)) == REPLIES[1]
    assert SECRET.encode() not in pickle.dumps(artifact)


def test_pyarrow_reaches_the_same_files(store: Store) -> None:
    filled(store, stage())
    artifact = store.get(stage())
    path = f"{store.files.root}/{artifact.folder}/{artifact.parts[0].path}"
    with store.files.filesystem.open_input_file(path) as stream:
        assert pq.read_table(stream).num_rows == 3
    assert store.files.filesystem.get_file_info(path).type == fs.FileType.File


def test_probe_leaves_nothing(store: Store) -> None:
    store.files.probe()
    assert store.files.list("", recursive=True) == []


def test_lease_is_held_by_one_and_given_back(store: Store) -> None:
    one = stage()
    first = try_lease(store, one, ttl_s=30)
    assert first is not None
    assert first.epoch == 1
    assert try_lease(store, one, ttl_s=30) is None
    with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on host"), lease(store, one, wait=False):
        pass
    first.release()
    with lease(store, one, ttl_s=30) as second:
        assert second is not None
        assert second.epoch == 2
        with pytest.raises(FencedError, match="epoch 2 has taken over from our 1"):
            first.check()


def test_a_stale_holder_that_wakes_up_cannot_commit(store: Store) -> None:
    one = stage()
    sleeper = try_lease(store, one, ttl_s=2)
    assert sleeper is not None
    writer = sleeper.writer()
    writer.add_file("a", b"old")
    sleeper._released = True  # its heart stops, as in a process that is stopped
    deadline = time.monotonic() + 30
    while (taker := try_lease(store, one, ttl_s=30)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    with taker:
        with pytest.raises(FencedError, match="epoch 2"):
            writer.commit()
        assert not store.done(one)
        fresh = taker.writer()
        fresh.add_file("a", b"new")
        fresh.commit()
    assert store.get(one).read_file("a") == b"new"


def test_what_broken_attempts_left_goes_with_the_commit(store: Store) -> None:
    one, two = stage(), stage(1)
    first = try_lease(store, one, ttl_s=30)
    assert first is not None
    broken = first.writer()
    broken.write_records(0, REPLIES[0], Reply)
    broken.add_file("weights/a.bin", b"half trained")
    half = begun_upload(store, f"{broken.folder}/files/{broken.nonce}/b.bin")
    store.writer(two).add_file("a", b"another stage's")
    first.release()
    with lease(store, one, ttl_s=30) as second:
        assert second is not None
        writer = second.writer()
        writer.write_records(1, REPLIES[1], Reply)
        writer.add_file("weights/a.bin", b"alpha")
        writer.commit()
        assert not half()
        left = [path.partition(f"{one.key}/")[2] for path in store.files.list(writer.folder, recursive=True)]
        parts = [part for part in left if part.endswith(".parquet")]
        assert len(parts) == 2
        assert {p for p in left if not p.startswith("lease/")} == {
            "artifact.json", *parts, "parts/00000.json", "parts/00001.json", f"files/{writer.nonce}/weights/a.bin"
        }  # fmt: skip
        second.check()  # its heart goes on beating there
    made = store.get(one)
    assert list(made.read(Reply)) == [*REPLIES[0], *REPLIES[1]]
    assert made.read_file("weights/a.bin") == b"alpha"
    assert len(store.files.list(f"{two.kind}/{two.key}", recursive=True)) == 1


def begun_upload(store: Store, path: str) -> Callable[[], bool]:
    """Begin to write `path` as a process that is killed in the middle does; the answer tells whether that is there."""
    if not isinstance(store.files, BucketFiles):
        half = Path(store.url) / path
        half = half.with_name(f".{half.name}.{'0' * 32}.tmp")
        half.write_bytes(b"half")
        return half.exists
    client, (bucket, _, prefix) = store.files._client, store.url.removeprefix("s3://").partition("/")
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{path}")
    return lambda: "Uploads" in client.list_multipart_uploads(Bucket=bucket, Prefix=prefix)


def test_waiting_ends_with_the_artifact(store: Store) -> None:
    one = stage()
    first = try_lease(store, one, ttl_s=4)
    assert first is not None
    with ThreadPoolExecutor(1) as pool:

        def wait() -> bool:
            with lease(store, one, ttl_s=4) as held:
                return held is None

        waiter = pool.submit(wait)
        filled(store, one)
        first.release()
        assert waiter.result(timeout=30)


# ---------------------------------------------------------------- a server's faults


@pytest.fixture
def bucket_env(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    return s3_server


def refused(url: str, endpoint: str, *words: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="store = ") as caught:
        Store.open(url, endpoint=endpoint).files.probe()
    assert time.monotonic() - began < 20
    for word in (url, *words):
        assert word in str(caught.value)
    assert SECRET not in str(caught.value)


def test_refused_missing_bucket(bucket_env: Server) -> None:
    refused("s3://no-such-bucket/x", bucket_env.endpoint, "does not exist", "create it")


def test_refused_wrong_keys(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket_env.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(f"s3://{bucket}/x", bucket_env.endpoint, "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    refused(f"s3://{bucket}/x", bucket_env.endpoint, "AWS_ACCESS_KEY_ID")


def test_refused_without_keys(bucket_env: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    refused(f"s3://{bucket_env.bucket()}/x", bucket_env.endpoint, "no credentials", "AWS_PROFILE")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused("s3://b/x", bucket_env.endpoint, "nobody", "AWS_PROFILE")


def test_refused_somebody_elses_bucket(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = bucket_env.bucket()
    for name, value in bucket_env.stranger().items():
        monkeypatch.setenv(name, value)
    refused(f"s3://{bucket}/x", bucket_env.endpoint, "may not use it", "s3:PutObject")


def test_refused_nobody_answers(bucket_env: Server) -> None:
    with fault_proxy(bucket_env) as proxy:
        gone = proxy.endpoint
    refused("s3://b/x", gone, "nobody answers", gone)


def test_refused_expired_keys(bucket_env: Server) -> None:
    with fault_proxy(bucket_env) as proxy:
        proxy.plan(status(400, "ExpiredToken"), method="PUT")
        refused(f"s3://{bucket_env.bucket()}/x", proxy.endpoint, "expired", "log in again")


def test_refused_when_the_condition_is_ignored(bucket_env: Server) -> None:
    with fault_proxy(bucket_env) as proxy:
        proxy.plan(condition_ignored, method="PUT")
        refused(f"s3://{bucket_env.bucket()}/x", proxy.endpoint, "4 of 4 writers", "If-None-Match", "use a folder")


def test_a_burst_of_503_is_waited_out(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        proxy.plan(status(503, "SlowDown"), method="PUT", times=2)
        proxy.plan(status(500, "InternalError"), method="PUT", times=1)
        proxy.plan(status(500, "InternalError"), method="GET", times=2)
        filled(store, stage())
        assert list(store.get(stage()).read(Reply, 0)) == REPLIES[0]


@pytest.mark.parametrize("fault", [lost_answer, reset_mid_put], ids=lambda fault: fault.__name__)
def test_a_broken_put_is_decided_by_what_is_there(
    bucket_env: Server, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        proxy.plan(fault, method="PUT", contains="artifact.json", times=1)
        proxy.plan(fault, method="PUT", contains="00002.json", times=1)
        filled(store, stage())  # would raise if our own put counted as another's
        assert store.get(stage()).rows == 12
    writer = open_bucket(bucket_env, monkeypatch).writer(stage())
    with fault_proxy(bucket_env) as proxy:  # every answer is lost, those to the retries too
        files = BucketFiles(writer._files.url, endpoint=proxy.endpoint, attempts=2)
        proxy.plan(fault, method="PUT")
        if fault is lost_answer:
            assert files.put_if_absent("x", b"mine")
            assert not files.put_if_absent("x", b"yours")
        else:
            with pytest.raises(OSError, match="/x: "):
                files.put_if_absent("x", b"mine")
            assert files.read_or_none("x") is None


def test_a_conflict_is_tried_again(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket_env) as proxy:
        files = open_bucket(bucket_env, monkeypatch, proxy.endpoint).files
        proxy.plan(status(409, "ConditionalRequestConflict"), method="PUT", times=2)
        assert files.put_if_absent("x", b"mine")
        assert not files.put_if_absent("x", b"yours")
        assert files.read("x") == b"mine"


def test_a_body_that_breaks_off_is_read_again(
    bucket_env: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = os.urandom(CHUNK_BYTES + 5)
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        writer = store.writer(stage())
        writer.add_file("w", content)
        writer.commit()
        proxy.plan(broken_body, method="GET", contains="/w", times=2)
        assert (store.get(stage()).download(tmp_path) / "w").read_bytes() == content
        proxy.plan(broken_body, method="GET", contains="/w", times=2)
        assert store.get(stage()).read_file("w") == content


def test_a_failed_multipart_upload_leaves_nothing(
    bucket_env: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "w").write_bytes(bytes(5 * CHUNK_BYTES))
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        proxy.plan(status(403, "AccessDenied"), method="PUT", contains="partNumber=3")
        with pytest.raises(PermissionError, match="AccessDenied"):
            store.writer(stage()).add_file("w", tmp_path / "w")
        bucket = store.url.split("/")[2]
        assert "Uploads" not in bucket_env.client().list_multipart_uploads(Bucket=bucket)
        assert store.files.list("", recursive=True) == []


def test_keys_denied_in_the_middle_are_told(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        proxy.plan(status(403, "AccessDenied"), method="PUT", contains="parts/00001.json")
        writer = store.writer(stage())
        assert writer.write_records(0, REPLIES[0], Reply)
        with pytest.raises(PermissionError, match="AccessDenied"):
            writer.write_records(1, REPLIES[1], Reply)
        assert store.writer(stage()).finished_indices() == {0}
        proxy.plan(status(403, "AccessDenied"), method="GET")
        with pytest.raises(PermissionError):  # never "it is not there"
            store.find("report", stage().key)


def test_environment_serves_boto3_and_pyarrow(bucket_env: Server) -> None:
    """A child process with `environment` alone reaches the bucket through every client's own variables."""
    bucket = bucket_env.bucket()
    code = (
        "import sys, boto3, pyarrow.fs as fs\n"
        "boto3.client('s3').put_object(Bucket=sys.argv[1], Key='a', Body=b'1')\n"
        "place, path = fs.FileSystem.from_uri(f's3://{sys.argv[1]}/b')\n"  # as Ray does
        "with place.open_output_stream(path) as stream: stream.write(b'2')\n"
    )
    env = os.environ | environment({"endpoint": bucket_env.endpoint, "region": "us-east-1"})
    subprocess.run([sys.executable, "-c", code, bucket], env=env, check=True, timeout=120)
    listed = bucket_env.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == ["a", "b"]
    assert not any("KEY" in name or "SECRET" in name for name in environment({"endpoint": "http://h"}))


def test_many_parts_are_listed_not_read(bucket_env: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket_env) as proxy:
        store = open_bucket(bucket_env, monkeypatch, proxy.endpoint)
        one = stage()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda k: store.files.write(f"report/{one.key}/parts/{k:05d}.json", b"{}"), range(1200)))
        proxy.seen.clear()
        assert store.writer(one).finished_indices() == set(range(1200))
        assert len(proxy.seen) <= 3  # one for the leases, two pages of 1,000
