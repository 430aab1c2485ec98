"""The ledger in one process: what is kept, what a kill leaves, who may ask."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from empathy.artifact import CorruptError
from empathy.files import Files, open_files
from empathy.folder import FolderFiles
from empathy.records import Turn
from empathy.requests import Answer, Request
from serving import presence
from serving.claims import Claims
from serving.ledger import Ledger, Spent


def request(number: int, model: str = "m") -> Request:
    return Request("p", model, (Turn("user", f"hello {number}"),))


KEYS = [request(k).key for k in range(300)]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return open_files(str(tmp_path / "store"))


def journal(files: Files, ledger: Ledger) -> Path:
    return Path(files.root) / "ledger" / "replies" / f"{ledger.writer}.jsonl"


def test_a_reply_comes_back_whole(files: Files) -> None:
    answer = Answer("héllo\r\n\u2028 \x00 x", "length", "m-1", 3, None, None, 2)
    with Ledger(files) as ledger:
        ledger.record(request(0), answer)
        assert ledger.get(KEYS[0]) == answer
    with Ledger(files) as again:
        assert again.get(KEYS[0]) == answer
        assert again.get(KEYS[1]) is None
        assert (KEYS[0] in again, len(again)) == (True, 1)


@pytest.mark.parametrize("torn", [b'{"key":"', b'{"key":"' + KEYS[1].encode() + b'","text":"half', b"\xff\xfe", b"}"])
def test_a_torn_last_line_is_not_there(files: Files, torn: bytes) -> None:
    with Ledger(files) as ledger:
        ledger.record(request(0), Answer("whole"))
        path = journal(files, ledger)
    path.write_bytes(path.read_bytes() + torn)
    with Ledger(files) as again:
        assert len(again) == 1
        assert again.claim(KEYS[:2]) == {KEYS[1]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(KEYS[1].encode(), b"z" * 40),
        lambda line: line.replace(KEYS[1].encode(), KEYS[1][:7].encode()),
        lambda line: line.replace(b'"text":"', b'"text":5,"t":"'),
        lambda line: line.replace(b'"text":', b'"txet":'),
        lambda line: line[:60] + line,
    ],
)
def test_a_line_damaged_inside_is_asked_for_again(files: Files, damage: Callable[[bytes], bytes]) -> None:
    """It must not end every run on the store."""
    with Ledger(files) as ledger:
        ledger.record(request(0), Answer("whole"))
        ledger.record(request(1), Answer("whole too"))
        path = journal(files, ledger)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage(second))
    with Ledger(files) as again:
        assert again.get(KEYS[1]) is None
        assert again.get(KEYS[0]) == Answer("whole")
        assert again.claim(KEYS[:2]) == {KEYS[1]}
        assert again.summary()["m"].requests == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_what_was_damaged_and_asked_again_stays_whichever_journal_is_read_last(files: Files, swapped: bool) -> None:
    paths = []
    for text in ("first", "again"):
        with Ledger(files) as ledger:
            ledger.record(request(0), Answer(text))
            paths.append(journal(files, ledger))
        if text == "first":
            paths[0].write_bytes(paths[0].read_bytes().replace(b'"text"', b'"tex\x00"'))
    one, other = sorted(paths)
    if swapped:
        texts = [path.read_bytes() for path in (one, other)]
        for path, text in zip((other, one), texts, strict=True):
            path.write_bytes(text)
    with Ledger(files) as later:
        assert later.get(KEYS[0]) == Answer("again")
        assert later.claim(KEYS[:1]) == set()


def test_only_new_lines_are_read_when_a_journal_grows(files: Files) -> None:
    with Ledger(files) as one, Ledger(files) as other:
        assert one.claim(KEYS[:2]) == set(KEYS[:2])
        one.record(request(0), Answer("zero"))
        assert other.claim(KEYS[:2]) == set()
        assert (KEYS[0] in other, KEYS[1] in other) == (True, False)
        one.record(request(1), Answer("one"))
        assert other.claim(KEYS[:2]) == set()
        assert [other.get(k).text for k in KEYS[:2]] == ["zero", "one"]  # type: ignore[union-attr]


def test_the_first_claim_of_a_key_wins_and_a_released_one_is_free(files: Files) -> None:
    with Ledger(files) as one, Ledger(files) as other:
        assert one.claim(KEYS[:3]) == set(KEYS[:3])
        assert other.claim(KEYS[1:5]) == {KEYS[3], KEYS[4]}
        one.release([KEYS[1]])
        assert other.claim(KEYS[1:3]) == {KEYS[1]}
        assert (other.holds(KEYS[1]), other.holds(KEYS[2])) == (True, False)


def test_closing_frees_what_is_open(files: Files) -> None:
    with Ledger(files) as other:
        with Ledger(files) as one:
            one.claim(KEYS[:2])
            one.record(request(0), Answer("zero"))
        assert other.claim(KEYS[:2]) == {KEYS[1]}
        assert KEYS[0] in other


def test_claims_that_a_full_disk_does_not_let_go_of_are_free_all_the_same(tmp_path: Path) -> None:
    """Their process lives on, in other stages: it must not beat for them, or who asks the same waits for ever."""
    place = Full(str(tmp_path / "store"))
    ledger = Ledger(place)
    assert ledger.claim(KEYS[:2]) == set(KEYS[:2])
    ledger.record(request(0), Answer("paid"))
    place.full = True
    with pytest.raises(OSError, match="No space"):
        ledger.close()
    with Ledger(open_files(place.url)) as other:
        assert other.claim(KEYS[:2]) == {KEYS[1]}
        assert KEYS[0] in other


class Full(FolderFiles):
    """A folder whose disk is full as soon as it is said to be."""

    full = False

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put_if_absent(path, data)


def test_a_dead_process_loses_its_claims_at_once_and_keeps_its_replies(files: Files) -> None:
    dying = (
        "import os, sys; from empathy.files import open_files; from serving.ledger import Ledger;"
        "from tests.unit.test_ledger import KEYS, Answer, request;"
        f"ledger = Ledger(open_files({files.url!r})); ledger.claim(KEYS[:3]);"
        "ledger.record(request(0), Answer('zero'));"
        "os._exit(9)"
    )
    with Ledger(files) as ours:
        subprocess.run([sys.executable, "-c", dying], check=False)
        assert ours.claim(KEYS[:3]) == {KEYS[1], KEYS[2]}
        assert ours.get(KEYS[0]) == Answer("zero")


def test_a_writer_of_another_machine_is_dead_when_its_beat_stands_still(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(presence, "now_s", lambda: now)
    claims = Claims(files, "far", lambda writer: None)
    claims.append({"keys": KEYS[:1]})
    files.put_if_absent(
        f"{presence.FOLDER}/far.json", json.dumps({"machine": "far", "pid": 1, "started": "1"}).encode()
    )
    files.write(f"{presence.FOLDER}/far.beat", b"1")
    with Ledger(files, stale_s=60) as ours:
        assert ours.claim(KEYS[:1]) == set()
        now = 59
        assert ours.claim(KEYS[:1]) == set()
        files.write(f"{presence.FOLDER}/far.beat", b"2")
        now = 80
        assert ours.claim(KEYS[:1]) == set()  # it moved: the minute begins anew
        now = 141
        assert ours.claim(KEYS[:1]) == set(KEYS[:1])


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"machine": "far"}'])
def test_a_writer_whose_record_is_damaged_is_told_by_its_beat(
    damaged: bytes, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(presence, "now_s", lambda: now)
    Claims(files, "far", lambda writer: None).append({"keys": KEYS[:1]})
    files.write(f"{presence.FOLDER}/far.json", damaged)
    files.write(f"{presence.FOLDER}/far.beat", b"1")
    with Ledger(files, stale_s=60) as ours:
        assert ours.claim(KEYS[:1]) == set()
        now = 59
        assert ours.claim(KEYS[:1]) == set()
        now = 61
        assert ours.claim(KEYS[:1]) == set(KEYS[:1])


def test_a_damaged_record_of_claims_is_named_with_what_to_do(files: Files) -> None:
    Claims(files, "one", lambda writer: None).append({"keys": KEYS[:1]})
    (path,) = files.list("ledger/claims")
    files.write(path, b"{")
    with pytest.raises(CorruptError, match=rf"{path} is damaged: put it back .* delete ledger/claims and"):
        Ledger(files)


def test_a_damaged_snapshot_of_the_claims_is_passed_over(files: Files) -> None:
    claims = Claims(files, "one", lambda writer: None)
    claims.append({"keys": KEYS[:2]})
    claims.snapshot()
    claims.append({"released": KEYS[:1]})
    claims.snapshot()
    files.write(max(files.list("ledger/snapshots")), b"{")
    other = Claims(files, "other", lambda writer: None)
    other.load()
    assert [other.owner(k) for k in KEYS[:2]] == [None, "one"]


def test_who_was_taken_for_dead_does_not_hold_its_claims_any_more(files: Files) -> None:
    with Ledger(files) as ledger:
        ledger.claim(KEYS[:2])
        other = Claims(files, "other", lambda writer: None)
        other.load()
        assert other.append({"dead": [ledger.writer], "keys": KEYS[:1]})
        ledger.renew()
        assert [ledger.holds(k) for k in KEYS[:2]] == [False, False]
        assert ledger.claim(KEYS[:2]) == set(KEYS[:2])  # "other" has no name in the list of writers: it is dead


def test_everybody_folds_the_log_to_the_same_owners_with_and_without_a_snapshot(files: Files) -> None:
    with Ledger(files) as one, Ledger(files) as other:
        for k in range(0, 240, 2):  # 240 records: two snapshots
            one.claim([KEYS[k]])
            other.claim([KEYS[k], KEYS[k + 1]])
            one.record(request(k), Answer("even"))
        snapshots = files.list("ledger/snapshots")
        assert len(snapshots) == 2
        late, whole = (Claims(files, name, lambda writer: None) for name in ("late", "whole"))
        late.load()
        whole.refresh()
        assert [late.owner(k) for k in KEYS[1:240:2]] == [whole.owner(k) for k in KEYS[1:240:2]] == [other.writer] * 120
        assert (late.owner(KEYS[0]), whole.owner(KEYS[0])) == (None, one.writer)  # answered: left out of snapshots
        with Ledger(files) as third:
            assert third.claim(KEYS[:2]) == set()
            assert KEYS[0] in third


def test_a_reply_of_an_unwanted_model_can_be_asked_for_again_and_the_later_one_counts(files: Files) -> None:
    with Ledger(files) as ledger:
        ledger.record(request(0), Answer("wrong", model_served="x"))
        ledger.forget(KEYS[0])
        assert ledger.claim(KEYS[:1]) == set(KEYS[:1])
        ledger.record(request(0), Answer("right"))
        assert ledger.get(KEYS[0]) == Answer("right")


def test_summary_adds_up_by_model_and_says_what_was_not_counted(files: Files) -> None:
    with Ledger(files) as ledger:
        ledger.record(request(0), Answer("a", tokens_in=10, tokens_out=2))
        ledger.record(request(1), Answer("b", tokens_in=20, tokens_out=3))
        ledger.record(request(2, "n"), Answer("c", tokens_in=5))
        assert ledger.summary() == {"m": Spent(2, 30, 5, 0), "n": Spent(1, 5, 0, 1)}


def test_a_full_disk_leaves_whole_lines(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.write
    with Ledger(files) as ledger:
        ledger.record(request(0), Answer("zero"))

        def full(descriptor: int, data: bytes) -> int:
            if len(data) < 100:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) - 50])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                ledger.record(request(1), Answer("one"))
        ledger.record(request(2), Answer("two"))
    with Ledger(files) as again:
        assert [again.get(k) for k in KEYS[:3]] == [Answer("zero"), None, Answer("two")]


def test_looking_leaves_nothing_behind(files: Files) -> None:
    with Ledger(files) as ledger:
        assert ledger.get(KEYS[0]) is None
    assert files.list("", recursive=True) == []


def test_a_line_says_who_paid_and_old_lines_stay_readable(files: Files) -> None:
    with Ledger(files) as old:
        old.record(request(0), Answer("before names were kept"))
    with Ledger(files, experiment="paper") as ledger:
        ledger.record(request(1), Answer("named"))
        path = journal(files, ledger)
        assert json.loads(path.read_text())["experiment"] == "paper"
        assert [ledger.get(k).paid_by for k in KEYS[:2]] == ["", "paper"]  # type: ignore[union-attr]
