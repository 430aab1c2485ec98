"""What a writer recorded and the bucket has not yet: it survives the process, and is in nobody's way."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from empathy.folder import FolderFiles
from serving import spools
from serving.journals import BucketJournals

WRITER = "a" * 16
LINES = [b'{"key":"%040d","text":"%d"}\n' % (k, k) for k in range(5)]


class Away(FolderFiles):
    """A place whose puts do not arrive after the first one."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.endswith("00001.jsonl"):
            return super().put_if_absent(path, data)
        time.sleep(60)  # longer than anybody looks
        raise OSError("it never arrived")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


def die_with(root: Path, tail: bytes = b"") -> None:
    """A process that records LINES, of which one chunk is put, and is killed; `tail` is what it was writing."""
    job = subprocess.Popen([sys.executable, "-m", "tests.unit.test_spools", str(root), tail.hex()])
    assert job.wait(60) == -signal.SIGKILL


def fetched(journals: BucketJournals) -> bytes:
    return b"".join(data for _, data in journals.fetch(WRITER))


def test_lines_of_a_killed_writer_are_put_by_the_next_reader_of_its_machine(tmp_path: Path) -> None:
    die_with(tmp_path / "store")
    files = FolderFiles(str(tmp_path / "store"))
    assert len(files.list("ledger/replies", recursive=True)) == 1
    reader = BucketJournals(files, "b" * 16)
    assert reader.writers() == [WRITER]
    assert fetched(reader) == b"".join(LINES)
    assert spools.writers(spools.folder_of(files)) == []
    assert fetched(BucketJournals(files, "c" * 16)) == b"".join(LINES)  # from the place alone


def test_a_torn_line_stays_behind(tmp_path: Path) -> None:
    die_with(tmp_path / "store", LINES[0][:20])
    assert fetched(BucketJournals(FolderFiles(str(tmp_path / "store")), "b" * 16)) == b"".join(LINES)


def test_a_put_that_arrives_late_is_kept_and_what_follows_it_is_put(tmp_path: Path) -> None:
    die_with(tmp_path / "store")

    class Late(FolderFiles):
        """Between our look and our put, the dead writer's second chunk arrives."""

        def put_if_absent(self, path: str, data: bytes) -> bool:
            if path.endswith("00002.jsonl"):
                assert super().put_if_absent(path, LINES[1])
            return super().put_if_absent(path, data)

    reader = BucketJournals(Late(str(tmp_path / "store")), "b" * 16)
    assert fetched(reader) == b"".join(LINES)
    assert len(FolderFiles(str(tmp_path / "store")).list("ledger/replies", recursive=True)) == 3


def test_a_living_writers_lines_are_its_own_to_put(tmp_path: Path) -> None:
    files = FolderFiles(str(tmp_path / "store"))
    writer = BucketJournals(Away(str(tmp_path / "store")), WRITER)
    writer.append(LINES[0])
    while not files.exists(f"ledger/replies/{WRITER}/00001.jsonl"):
        time.sleep(0.01)
    writer.append(LINES[1])
    assert fetched(BucketJournals(files, "b" * 16)) == LINES[0]


def test_nothing_stays_on_disk_after_a_good_end_and_no_one_else_may_read(tmp_path: Path) -> None:
    files = FolderFiles(str(tmp_path / "store"))
    writer = BucketJournals(files, WRITER)
    for line in LINES:
        writer.append(line)
    folder = spools.folder_of(files)
    assert stat.S_IMODE((folder / f"{WRITER}.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == 0o700
    writer.close()
    assert spools.writers(folder) == []
    assert fetched(BucketJournals(files, "b" * 16)) == b"".join(LINES)


def test_an_outage_leaves_what_was_paid_for_to_the_next_run(tmp_path: Path) -> None:
    class Down(FolderFiles):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            raise OSError("the bucket is away")

    writer = BucketJournals(Down(str(tmp_path / "store")), WRITER)
    writer.append(LINES[0])
    with pytest.raises(OSError, match="away"):
        writer.close()
    assert fetched(BucketJournals(FolderFiles(str(tmp_path / "store")), "b" * 16)) == LINES[0]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    ours = spools.folder_of(FolderFiles(str(tmp_path / "store"))).parent.parent
    ours.parent.mkdir(exist_ok=True)
    ours.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="TMPDIR"):
        BucketJournals(FolderFiles(str(tmp_path / "store")), WRITER).append(LINES[0])


def test_a_full_disk_here_loses_nothing_that_the_bucket_has_room_for(tmp_path: Path) -> None:
    """The disk as a limit on the size of files, which the bucket's chunks stay under: the third line does not fit."""
    code = """
    import resource, sys, time
    from empathy.folder import FolderFiles
    from serving.journals import BucketJournals
    from tests.unit.test_spools import LINES, WRITER
    files = FolderFiles(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * len(LINES[0])),) * 2)
    journals = BucketJournals(files, WRITER)
    for line in LINES:
        try:
            journals.append(line)
        except OSError as error:
            print(error.filename)
        journals.flush()
    journals.close()
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "bucket")]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    spool = spools.folder_of(FolderFiles(str(tmp_path / "bucket"))) / f"{WRITER}.jsonl"
    assert done.stdout.splitlines() == [str(spool)] * 3, "each is told, and says which file"
    assert not spool.exists()
    assert fetched(BucketJournals(FolderFiles(str(tmp_path / "bucket")), "b" * 16)) == b"".join(LINES)


if __name__ == "__main__":
    place = Away(sys.argv[1])
    journals = BucketJournals(place, WRITER)
    journals.append(LINES[0])
    while not place.exists(f"ledger/replies/{WRITER}/00001.jsonl"):
        time.sleep(0.01)
    for one in LINES[1:]:
        journals.append(one)
    with (spools.folder_of(place) / f"{WRITER}.jsonl").open("ab") as spool:
        spool.write(bytes.fromhex(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
