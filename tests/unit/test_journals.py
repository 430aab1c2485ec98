"""Journals of a store that was copied from a bucket into a folder, or back: what was paid for comes along."""

from __future__ import annotations

from pathlib import Path

import pytest

from empathy.folder import FolderFiles
from empathy.records import Turn
from empathy.requests import Answer, Request
from serving import journals
from serving.journals import BucketJournals, FolderJournals, Journals
from serving.ledger import Ledger
from serving.spending import spending


class Bucket(FolderFiles):
    """Any place that is no folder gets a bucket's layout; this one lies in a folder, as its copy would."""


def opened(files: FolderFiles, writer: str) -> Journals:
    return BucketJournals(files, writer) if isinstance(files, Bucket) else FolderJournals(files, writer)


def request(number: int) -> Request:
    return Request("p", "m", (Turn("user", f"hello {number}"),))


@pytest.mark.parametrize(("first", "then"), [(Bucket, FolderFiles), (FolderFiles, Bucket)], ids=["out", "in"])
def test_a_copied_store_knows_what_was_paid(
    first: type[FolderFiles], then: type[FolderFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.ledger.open_journals", opened)
    monkeypatch.setattr("serving.spending.open_journals", opened)
    monkeypatch.setattr(journals, "CHUNKS_A_SEGMENT", 2)
    for numbers in (range(5), range(5, 8)):
        with Ledger(first(str(tmp_path))) as ledger:
            for k in numbers:
                ledger.record(request(k), Answer(f"reply {k}", tokens_in=7, tokens_out=1))
                ledger.flush()  # a chunk each, and segments of two
    files = then(str(tmp_path))
    with Ledger(files) as ledger:
        for k in range(8):
            known = ledger.get(request(k).key)
            assert known is not None
            assert known.text == f"reply {k}"
        ledger.record(request(8), Answer("reply 8", tokens_in=7, tokens_out=1))
    assert sum(spending(files)["requests"]) == 9, "each once, though segments hold lines again"
    with Ledger(first(str(tmp_path))) as ledger:
        assert len(ledger) == 9, "and back again"
