"""Batches against a fake provider with a batch API: whatever it does, each row is answered or refused and paid once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from empathy.artifact import CorruptError
from empathy.files import Files, open_files
from empathy.records import Turn
from empathy.requests import Answer, Request
from serving import batch_notes, batches
from serving.batch_api import read_batch
from serving.batch_basket import line_of
from serving.batch_keeper import check_places
from serving.batches import AGAIN, ELSEWHERE, NO_ROOM, Batches
from serving.budget import BudgetSpent
from serving.ledger import Ledger
from serving.prices import Price, Prices
from serving.providers import Batching, Provider, ProviderDown, ProviderStopped
from serving.quota import Authority, Here, Quota
from serving.rules import teacher
from serving.scripted import request_id
from tests.fake_batches import FakeBatches, Faults

ROWS = 12


@pytest.fixture(scope="module")
def running() -> Iterator[FakeBatches]:
    with FakeBatches() as server:
        yield server


@pytest.fixture
def fake(running: FakeBatches) -> Callable[..., FakeBatches]:
    """One server for all tests: `fake(fates=("expire",))` makes it behave so, and count anew."""
    return lambda **faults: running.reset(Faults(**{"work_s": 0.05} | faults))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return open_files(str(tmp_path))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LOOK_S", 0.1)


def request(number: int, model: str = teacher.NAME) -> Request:
    return Request("fake", model, (Turn("user", f"My dog number {number} died."),))


def provider(server: FakeBatches, key_file: str | None = None, **batching: Any) -> Provider:
    quick = Batching(**{"poll_s": 0.02, "settle_s": 0.2} | batching)
    return Provider("fake", server.url, backoff_s=0.01, patience_s=5, key_file=key_file, batch=quick)


def ask(
    place: Provider,
    files: Files,
    rows: Sequence[int] = range(ROWS),
    said: list[str] | None = None,
    quota: Quota | None = None,
) -> dict[int, Answer]:
    """Have all rows answered, in as many batches as it takes."""

    async def work() -> dict[int, Answer]:
        with Ledger(files) as ledger:
            tell = [].append if said is None else said.append
            async with Batches(files, ledger, {"fake": place}, tell, quota) as open_ones:
                await open_ones.adopt()
                while left := [k for k in rows if open_ones.answer(request(k)) is None]:
                    waits = {await open_ones.want(request(k)) for k in left}
                    await open_ones.flush()
                    while AGAIN not in waits and not waits & await open_ones.step():
                        pass
                return {k: answer for k in rows if (answer := open_ones.answer(request(k)))}

    return asyncio.run(asyncio.wait_for(work(), 30))


def bills(server: FakeBatches) -> list[int]:
    """How often each row was billed."""
    billed = server.counts()["billed"]
    return [billed.get(request_id(request(k).body), 0) for k in range(ROWS)]


def words(answers: dict[int, Answer]) -> dict[int, str]:
    return {k: a.text for k, a in answers.items()}


@pytest.fixture(scope="module")
def expected() -> dict[int, str]:
    """The replies of the rules, by way of the chat endpoint's own code."""
    return {k: teacher.reply(request(k).messages) for k in range(ROWS)}


def test_each_row_is_answered_with_its_own_reply_and_paid_once(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake()
    answers = ask(provider(server, requests=5), files)
    assert words(answers) == expected
    assert answers[3].tokens_out == len(expected[3].split())
    assert answers[3].model_served == teacher.NAME
    assert (server.counts()["sizes"], bills(server)) == ([5, 5, 2], [1] * ROWS)
    assert batch_notes.open_notes(files) == []
    assert ask(provider(server), files) == answers
    assert len(server.counts()["sizes"]) == 3


def test_the_lines_of_the_ledger_say_what_was_paid(fake: Callable[..., FakeBatches], files: Files) -> None:
    ask(provider(fake(), price=0.25), files)
    (journal,) = (files.read(path) for path in files.list("ledger/replies"))
    assert {orjson.loads(line)["price"] for line in journal.splitlines()} == {0.25}


@pytest.mark.parametrize(
    ("fates", "batches_made", "paid"),
    [
        (("expire",), 2, [1] * ROWS),
        (("expire_all",), 2, [1] * ROWS),
        (("partial",), 2, [1] * ROWS),
        (("lose",), 2, [2] * ROWS),  # the provider lost what it had billed
        (("fail",), 2, [1] * ROWS),
        (("expire", "partial", ""), 3, [1] * ROWS),
    ],
)
def test_what_is_not_answered_is_asked_again(
    fates: tuple[str, ...],
    batches_made: int,
    paid: list[int],
    fake: Callable[..., FakeBatches],
    files: Files,
    expected: dict[int, str],
) -> None:
    server = fake(fates=fates)
    assert words(ask(provider(server), files)) == expected
    assert (len(server.counts()["sizes"]), bills(server)) == (batches_made, paid)


def fault(number: int) -> str:
    """What befalls a row under the fate "rows", by the first two digits of its id."""
    return ("429", "500", "400", "")[int(request_id(request(number).body)[:2], 16) % 4]


def said(number: int) -> str:
    return f"{fault(number)}: row {fault(number)}"


def test_rows_fail_one_by_one(fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]) -> None:
    """The fake answers a row by the first two digits of its id: 0 429, 1 500, 2 400, 3 a reply (modulo 4)."""
    kinds = {k: int(request_id(request(k).body)[:2], 16) % 4 for k in range(ROWS)}
    assert set(kinds.values()) == {0, 1, 2, 3}
    server = fake(fates=("rows",))
    answers = ask(provider(server), files)
    refused = {k for k, a in answers.items() if a.refused}
    assert refused == {k for k, kind in kinds.items() if kind == 2}
    assert answers[min(refused)].refused == "HTTP 400: row 400"
    assert {k: t for k, t in words(answers).items() if k not in refused} == {
        k: t for k, t in expected.items() if k not in refused
    }
    assert {k: a.attempts for k, a in answers.items() if k not in refused} == {
        k: 1 if kind == 3 else 2 for k, kind in kinds.items() if kind != 2
    }


def test_a_row_is_given_up_when_batches_that_answered_others_did_not_answer_it(
    fake: Callable[..., FakeBatches], files: Files
) -> None:
    """Two rows whose turn never comes well go into every batch, each time beside two others that are answered."""
    never, fine = ([k for k in range(40) if fault(k) in kinds] for kinds in (("429", "500"), ("",)))
    server = fake(fates=("rows",) * 9)
    answers = ask(provider(server, asks=3, requests=4, at_once=1), files, [*never[:2], *fine[:6]])
    assert server.counts()["sizes"] == [4, 4, 4]
    assert {k for k, a in answers.items() if a.refused} == set(never[:2])
    assert answers[never[0]].refused == f"no answer in 3 batches that answered others: HTTP {said(never[0])}"


def test_rows_are_not_given_up_when_nobody_is_answered(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    """A few rows, fewer than any breaker counts, at a provider that is away: they are not refused, and the next run
    asks them."""
    never, (fine, *_) = ([k for k in range(ROWS) if fault(k) in kinds] for kinds in (("429", "500"), ("",)))
    server = fake(fates=("rows",) * 9)
    told = (
        r"3 batches in a row without an answer; 2 requests have no reply, the last one: HTTP \d+: row .*take batch = t"
    )
    with pytest.raises(ProviderDown, match=told):
        ask(provider(server, asks=3), files, [*never[:2], fine])
    assert server.counts()["sizes"] == [3, 2, 2, 2]
    back = ask(provider(fake()), files, [*never[:2], fine])
    assert words(back) == {k: expected[k] for k in (*never[:2], fine)}
    assert bills(server)[fine] == 0, "it was answered before"


def test_rows_that_a_provider_does_not_get_to_are_asked_until_it_does(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    """Half of each batch is left when its time is up: 12, 6, 3, 2, 1 rows; the last row was in five batches."""
    server = fake(fates=("expire",) * 4)
    answers = ask(provider(server, asks=2), files)
    assert words(answers) == expected
    assert server.counts()["sizes"] == [12, 6, 3, 2, 1]


def test_batches_that_bring_nothing_stop_the_run(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("expire_all",) * 9)
    with pytest.raises(ProviderDown, match="3 batches in a row"):
        ask(provider(server), files)
    assert words(ask(provider(fake()), files)) != {}
    assert bills(server) == [1] * ROWS


def test_a_file_that_never_passes_validation_stops_the_run(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("fail",) * 9)
    with pytest.raises(ProviderStopped, match=r"takes no batch.*the file cannot be read"):
        ask(provider(server), files)
    assert len(server.counts()["sizes"]) == 3


def test_a_line_at_fault_is_refused_and_the_others_are_answered(fake: Callable[..., FakeBatches], files: Files) -> None:
    answers = ask(provider(fake(fates=("fail_line",))), files)
    assert answers[1].refused == "invalid_json_line: line 2 is not good"
    assert [k for k, a in answers.items() if a.refused] == [1]


def test_another_model_is_kept_and_told(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("other_model",))
    with pytest.raises(ProviderStopped, match="'some-other-model' answered"):
        ask(provider(server), files)
    allowed = Provider("fake", server.url, served=("some-other-model",), batch=Batching(poll_s=0.02))
    assert {a.model_served for a in ask(allowed, files).values()} == {"some-other-model"}
    assert bills(server) == [1] * ROWS


def test_a_model_that_another_one_answers_for_is_paid_one_reply_a_run(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake(fates=("other_model",) * 3)
    for sizes in ([ROWS], [ROWS, 1], [ROWS, 1, 1]):
        with pytest.raises(ProviderStopped, match=r"served = \['some-other-model'\] in \[providers.fake\]"):
            ask(provider(server), files)
        assert server.counts()["sizes"] == sizes
    assert words(ask(provider(server), files)) == expected, "it was mended"
    assert server.counts()["sizes"] == [ROWS, 1, 1, 1, ROWS - 1]


def test_a_balance_that_ends_within_a_batch_stops_after_keeping_the_rest(
    fake: Callable[..., FakeBatches], files: Files
) -> None:
    server = fake(fates=("row_402",))
    with pytest.raises(ProviderStopped, match=r"402.*balance"):
        ask(provider(server), files)
    ask(provider(server), files)
    assert bills(server) == [1] * ROWS


def test_a_batch_cancelled_by_hand_stops_the_run(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("cancelled",))
    with pytest.raises(ProviderStopped, match="was cancelled there"):
        ask(provider(server), files)
    ask(provider(server), files)
    assert bills(server) == [1] * ROWS


def test_careless_control_calls_and_cut_downloads(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake(control_share=0.4, torn_downloads=2, short_downloads=1)
    assert words(ask(provider(server, requests=5), files)) == expected
    assert bills(server) == [1] * ROWS


def test_a_create_whose_answer_is_lost_is_found_again(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake(create_lost_share=1.0, list_lag_s=0.1)
    assert words(ask(provider(server, requests=5), files)) == expected
    assert server.counts()["sizes"] == [5, 5, 2]


def test_too_large_files_are_split(fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]) -> None:
    server = fake(most_bytes=1000)
    assert words(ask(provider(server), files)) == expected
    assert bills(server) == [1] * ROWS
    assert max(server.counts()["sizes"]) == 3


def test_our_own_limits_split_too(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake()
    line = len(line_of(request(0)))
    answers = ask(provider(server, file_bytes=4 * line + 5), files, range(8))
    assert server.counts()["sizes"] == [4, 4]
    assert not any(a.refused for a in answers.values())
    long = ask(provider(server, file_bytes=line - 1), files, range(9, 10))
    assert "bytes, a batch at most" in str(long[9].refused)


def test_a_full_queue_makes_smaller_batches_and_no_row_pays_for_it(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake(queue_rows=4)
    assert words(ask(provider(server), files)) == expected
    assert bills(server) == [1] * ROWS
    assert server.counts()["sizes"][:2] == [12, 6]


def test_no_more_than_at_once(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("stuck",))

    async def work() -> list[str]:
        with Ledger(files) as ledger:
            place = provider(server, requests=2, at_once=2)
            async with Batches(files, ledger, {"fake": place}, print) as open_ones:
                return [await open_ones.want(request(k)) for k in range(5)]

    wanted = asyncio.run(work())
    assert wanted[0] == wanted[1] != wanted[2] == wanted[3]
    assert wanted[4] == NO_ROOM


def test_a_request_in_an_open_batch_is_nobody_elses(fake: Callable[..., FakeBatches], files: Files) -> None:
    """No process lives, and yet nobody may ask; another reader of the store sees the same."""
    server = fake(fates=("stuck",))

    async def leave_one_open() -> None:
        with Ledger(files) as ledger:
            async with Batches(files, ledger, {"fake": provider(server)}, print) as open_ones:
                for k in range(5):
                    await open_ones.want(request(k))
                await open_ones.flush()

    asyncio.run(leave_one_open())
    (note,) = batch_notes.open_notes(files)
    assert (note.rows, note.provider) == (5, "fake")
    assert str(note.batch).endswith("-0000")
    with Ledger(files) as ledger:
        assert ledger.claim([request(k).key for k in range(7)]) == {request(5).key, request(6).key}
    batch_notes.close(files, note, "given up")
    with Ledger(files) as ledger:
        assert len(ledger.claim([request(k).key for k in range(7)])) == 7


def test_a_batch_that_was_left_open_is_taken_up(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server = fake(work_s=0.3)

    async def leave_open() -> None:
        with Ledger(files) as ledger:
            async with Batches(files, ledger, {"fake": provider(server)}, print) as open_ones:
                for k in range(ROWS):
                    await open_ones.want(request(k))
                await open_ones.flush()

    asyncio.run(leave_open())
    said: list[str] = []
    assert words(ask(provider(server), files, said=said)) == expected
    assert "of an earlier run: 12 requests" in said[0]
    assert bills(server) == [1] * ROWS


class Killed(BaseException):
    """No handler in our code may see it."""


@pytest.mark.parametrize("moment", ["noted", "uploaded", "created"])
def test_a_kill_between_two_notes(
    moment: str, fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str], monkeypatch: Any
) -> None:
    """The process ends right before the note of the next step is written."""
    server, saves = fake(), 0

    def die(files: Files, note: batch_notes.Note) -> None:
        nonlocal saves
        saves += 1
        if saves > ["noted", "uploaded", "created"].index(moment):
            raise Killed
        save(files, note)

    save = batch_notes.save
    monkeypatch.setattr(batch_notes, "save", die)
    with pytest.raises(Killed):
        ask(provider(server), files)
    monkeypatch.setattr(batch_notes, "save", save)
    assert words(ask(provider(server), files)) == expected
    assert (server.counts()["sizes"], bills(server)) == ([ROWS], [1] * ROWS)
    assert batch_notes.open_notes(files) == []


def test_two_at_once_share_rows(fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]) -> None:
    server = fake(work_s=0.3)

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(
            asyncio.to_thread(ask, provider(server, requests=4), files, range(8)),
            asyncio.to_thread(ask, provider(server, requests=4), files, range(4, ROWS)),
        )

    first, second = asyncio.run(both())
    assert words(first) | words(second) == expected
    assert bills(server) == [1] * ROWS


def test_a_provider_without_batches_says_which_field(fake: Callable[..., FakeBatches], files: Files) -> None:
    with pytest.raises(ProviderStopped, match=r"batch = true out of \[providers.fake\]"):
        ask(provider(fake(no_batches=True)), files)
    assert batch_notes.open_notes(files) == []


def test_a_bad_key_is_told_and_never_shown(
    fake: Callable[..., FakeBatches], files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-wrong-0123456789")
    with pytest.raises(ProviderStopped, match=r"401.*key_file") as told:
        ask(provider(fake(key="sk-right"), str(key)), files)
    assert "sk-wrong" not in str(told.value)
    assert not any(b"sk-wrong" in files.read(path) for path in files.list("ledger", recursive=True))


def _left_open(server: FakeBatches, place: Provider, files: Files) -> None:
    async def work() -> None:
        with Ledger(files) as ledger:
            async with Batches(files, ledger, {"fake": place}, print) as open_ones:
                await open_ones.want(request(0))
                await open_ones.flush()

    asyncio.run(work())


def test_a_batch_of_another_key_is_not_paid_again(
    fake: Callable[..., FakeBatches], files: Files, tmp_path: Path
) -> None:
    server, key = fake(fates=("stuck",)), tmp_path / "key"
    key.write_text("first")
    _left_open(server, provider(server, str(key)), files)
    server.reset(Faults())  # forgets its batches: as another project does not know them
    key.write_text("second")
    with pytest.raises(ProviderStopped, match="made with another key"):
        ask(provider(server, str(key)), files)
    key.write_text("first")
    assert not ask(provider(server, str(key)), files, range(1))[0].refused


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"id": 1}'])
def test_a_damaged_note_is_named_when_open_and_not_needed_when_closed(
    damaged: bytes, fake: Callable[..., FakeBatches], files: Files
) -> None:
    _left_open(fake(), provider(fake()), files)
    (note,) = batch_notes.open_notes(files)
    path = f"{batch_notes.OPEN}/{note.id}.json"
    files.write(path, damaged)
    with pytest.raises(CorruptError, match=rf"{path} is damaged: put it back as it was, or give that batch up"):
        batch_notes.open_notes(files)
    batch_notes.close(files, note, "completed")
    assert batch_notes.keepers(files, note.holder) == list(note.keepers)
    files.write(f"{batch_notes.CLOSED}/{note.id}.json", damaged)
    assert batch_notes.keepers(files, note.holder) is None, "every journal is read"


def test_a_batch_at_another_place_is_not_paid_again(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake(fates=("stuck",))
    _left_open(server, provider(server), files)
    moved = Provider("fake", server.url + "/elsewhere", batch=Batching())
    with pytest.raises(ValueError, match=r"\[providers.fake\] base_url.*deleting"):
        check_places(files, {"fake": moved})


def test_others_requests_are_waited_for(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake()
    with Ledger(files) as other:
        assert other.claim([request(0).key])

        async def work() -> list[str]:
            with Ledger(files) as ledger:
                async with Batches(files, ledger, {"fake": provider(server)}, print) as open_ones:
                    first = await open_ones.want(request(0))
                    await open_ones.flush()
                    assert first in await open_ones.step()
                    return [first, await open_ones.want(request(0))]

        assert asyncio.run(work())[1] == ELSEWHERE
        assert server.counts()["sizes"] == []


OUT = Price(usd_per_million_in=0, usd_per_million_out=20_000, as_of="always")
"""Two cents a token: at worst a row of 200 tokens costs 4 dollars, in a batch 2."""


def cents(answers: dict[int, Answer]) -> float:
    """What answers cost in batches: a cent a token."""
    return 0.01 * sum(a.tokens_out or 0 for a in answers.values())


def test_a_batch_is_only_as_large_as_the_budget_allows(
    fake: Callable[..., FakeBatches], files: Files, expected: dict[int, str]
) -> None:
    server, quota = fake(), Here(Authority(max_usd=10.5), Prices({teacher.NAME: OUT}))
    answers = ask(provider(server), files, quota=quota)
    assert words(answers) == expected
    spent = quota.authority.budget.spending
    assert spent.paid_usd == pytest.approx(cents(answers))
    assert spent.reserved_usd == 0
    sizes = server.counts()["sizes"]
    assert sizes[0] == 5  # 5 x 2 dollars
    assert sizes[1] == (10.5 - cents({k: answers[k] for k in range(5)})) // 2
    assert sum(sizes) == ROWS


def test_the_cap_is_never_passed_and_what_was_paid_is_kept(fake: Callable[..., FakeBatches], files: Files) -> None:
    server = fake()
    with pytest.raises(BudgetSpent, match=r"max_usd = 2.3"):
        ask(provider(server), files, quota=Here(Authority(max_usd=2.3), Prices({teacher.NAME: OUT})))
    rows = [k for k, times in enumerate(bills(server)) if times]
    assert 0 < len(rows) < ROWS
    kept = ask(provider(server), files, quota=Here(Authority(max_usd=0.0), Prices({teacher.NAME: OUT})), rows=rows)
    assert cents(kept) <= 2.3 < cents(kept) + 2


def test_a_cap_without_a_price_is_refused_before_anything_is_sent(
    fake: Callable[..., FakeBatches], files: Files
) -> None:
    server = fake()
    with pytest.raises(ValueError, match="the price of fake/rule-teacher"):
        ask(provider(server), files, quota=Here(Authority(max_usd=1.0)))
    assert server.counts()["files"] == 0


def test_what_cannot_be_json_is_refused(fake: Callable[..., FakeBatches], files: Files) -> None:
    broken = Request("fake", "rule-teacher", (Turn("user", "half \ud800"),))

    async def work() -> Answer | None:
        with Ledger(files) as ledger:
            async with Batches(files, ledger, {"fake": provider(fake())}, print) as open_ones:
                assert await open_ones.want(broken) == AGAIN
                return open_ones.answer(broken)

    assert "cannot be encoded" in str(asyncio.run(work()))


def test_providers_differ_in_how_they_say_nothing() -> None:
    batch = read_batch({"id": "b", "status": "COMPLETED", "input_file_id": "f", "error_file_id": "", "errors": None})
    assert (batch.status, batch.ended, batch.error_file, batch.output_file, batch.total) == (
        "completed", True, None, None, 0,
    )  # fmt: skip
