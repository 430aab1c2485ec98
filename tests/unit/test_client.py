"""The client against the scripted server: what heals, what costs one row, what stops the run, and what is never
told."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from threading import Timer
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from empathy.files import Files, open_files
from empathy.records import Turn
from empathy.requests import Answer, Asking, Request
from serving.blame import QUESTION
from serving.budget import BudgetSpent
from serving.calls import Bill
from serving.client import Client, Counts, drive
from serving.ledger import Ledger
from serving.limits import Limits
from serving.prices import Price, Prices
from serving.providers import Provider, ProviderDown, ProviderStopped, Retry, read_reply, retry_after_s
from serving.quota import Authority, Here
from serving.rates import Limit
from serving.scripted import Fault, Faults, Scripted, request_id

KEY = "sk-planted-0123456789abcdef"


def request(number: int, sample: int = 0) -> Request:
    return Request("scripted", "rule-teacher-1", (Turn("user", f"My dog number {number} died."),), sample=sample)


def asking(one: Request) -> Asking[Answer]:
    return (yield one)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return open_files(str(tmp_path))


def provider(server: Scripted, **fields: Any) -> Provider:
    return Provider("scripted", server.url, backoff_s=0.01, **fields)


@pytest.fixture(scope="module")
def running() -> Iterator[Scripted]:
    with Scripted() as server:
        yield server


@pytest.fixture
def scripted(running: Scripted) -> Callable[..., Scripted]:
    """One server for all tests: `scripted(fault=...)` makes it behave so, and count anew."""
    return lambda **faults: running.reset(Faults(**faults))


def run(
    askings: Iterable[tuple[str, Asking[Any]]],
    place: Provider,
    files: Files,
    in_flight: int = 16,
    counts: Counts | None = None,
) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        with Ledger(files) as ledger:
            return {name: record async for name, record in drive(askings, place, ledger, in_flight, counts)}

    return asyncio.run(work())


def rows(*numbers: int) -> Iterable[tuple[str, Asking[Answer]]]:
    return ((str(k), asking(request(k))) for k in numbers)


@pytest.mark.parametrize("fault", ["429", "500", "529", "reset", "html", "broken", "no_choices"])
def test_what_can_heal_is_sent_again(fault: Fault, scripted: Callable[..., Scripted], files: Files) -> None:
    counts = Counts()
    server = scripted(fault=fault, first=2, retry_after="0.05")
    answers = run(rows(1, 2, 3), provider(server), files, counts=counts)
    assert server.counts()["total"] == counts.calls == 9
    assert {a.attempts for a in answers.values()} == {3}
    assert all(a.refused is None and "dog" in a.text for a in answers.values())
    assert (counts.retries, counts.limited) == (6, 6 if fault == "429" else 0)
    assert counts.unknown == (6 if fault == "reset" else 0)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_the_deadline_of_an_attempt_is_total(fault: Fault, scripted: Callable[..., Scripted], files: Files) -> None:
    began, counts = time.monotonic(), Counts()
    server = scripted(fault=fault)
    answers = run(rows(1), provider(server, timeout_s=1.5), files, counts=counts)
    assert answers["1"].attempts == 2
    assert counts.unknown == 1
    assert time.monotonic() - began < 20


def hit(share: float, rows: Iterable[int]) -> set[int]:
    """Those of `rows` that a fault of a `share` of the requests befalls."""
    return {k for k in rows if int(request_id(request(k).body)[:8], 16) / 16**8 < share}


@pytest.mark.parametrize("fault", ["500", "html"])
def test_a_row_that_is_never_answered_while_others_are_costs_one_row_and_is_not_kept(
    fault: Fault, scripted: Callable[..., Scripted], files: Files
) -> None:
    server, lost = scripted(fault=fault, first=0, share=0.2), hit(0.2, range(20))
    answers = run(rows(*range(20)), provider(server, attempts=2), files, in_flight=1)
    refused = {int(name): a.refused for name, a in answers.items() if a.refused}
    assert 0 < len(lost) < 10
    assert refused.keys() == lost
    assert all(why.startswith("no answer after 4 attempts, while others were answered:") for why in refused.values())
    with Ledger(files) as ledger:
        assert {k for k in range(20) if request(k).key in ledger} == set(range(20)) - lost


def test_the_last_row_of_an_experiment_is_given_up_too(scripted: Callable[..., Scripted], files: Files) -> None:
    """In a later run it is alone: nobody else is asked beside whom it could be seen to be at fault."""
    (lost, *_), counts = hit(0.2, range(20)), Counts()
    server = scripted(fault="500", first=0, share=0.2)
    answer = run(rows(lost), provider(server, attempts=3), files, counts=counts)[str(lost)]
    assert answer.refused == "no answer after 6 attempts, while others were answered: HTTP 500: 500 try again later"
    assert server.counts()["asked"][request_id(request(lost).body)] == 6
    assert (counts.calls, counts.retries) == (8, 5)  # and a question after each round


def test_what_was_asked_to_see_who_is_to_blame_is_in_the_ledger(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    (lost, *_), counts = hit(0.2, range(20)), Counts()
    run(rows(lost), provider(scripted(fault="500", first=0, share=0.2), attempts=1), files, counts=counts)
    with Ledger(files) as ledger:
        (spent,) = ledger.summary().values()
    assert spent.requests == 2
    assert (spent.tokens_in, spent.tokens_out) == (counts.tokens_in, counts.tokens_out)


def test_400_costs_one_row_is_sent_once_and_is_not_kept(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="400", first=0, share=0.5)
    answers = run(rows(*range(10)), provider(server), files)
    assert server.counts()["total"] == 10
    refused = [a for a in answers.values() if a.refused]
    assert 0 < len(refused) < 10
    assert "HTTP 400" in refused[0].refused
    assert "blocked by our policy" in refused[0].refused
    with Ledger(files) as ledger:
        assert len(ledger) == 10 - len(refused)


@pytest.mark.parametrize(
    ("fault", "text", "finish", "refused"),
    [
        ("empty", "", "stop", None),
        ("refusal", "", "stop", "I cannot help with that."),
        ("content_filter", "", "content_filter", "content filter"),
    ],
)
def test_what_was_paid_for_is_kept_whatever_it_is(
    fault: Fault, text: str, finish: str, refused: str | None, scripted: Callable[..., Scripted], files: Files
) -> None:
    server = scripted(fault=fault, first=0)
    first = run(rows(1), provider(server), files)["1"]
    again = run(rows(1), provider(server), files)["1"]
    assert server.counts()["total"] == 1
    assert first == again
    assert (first.text, first.finish_reason, first.refused) == (text, finish, refused)


def test_finish_reason_length_is_told(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="length")
    assert run(rows(1), provider(server), files)["1"].finish_reason == "length"


@pytest.mark.parametrize("fault", ["401", "402", "403"])
def test_a_key_or_balance_that_is_no_good_stops_at_once(
    fault: str, scripted: Callable[..., Scripted], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server = scripted(fault=fault, first=0)
    with pytest.raises(ProviderStopped, match=rf"'scripted'.*{fault}.*TEACHER_KEY"):
        run(rows(*range(50)), provider(server, key_env="TEACHER_KEY"), files, in_flight=2)
    assert server.counts()["total"] <= 3


def test_a_missing_key_is_told_before_anything_is_sent(
    scripted: Callable[..., Scripted], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    server = scripted()
    with pytest.raises(ValueError, match=r"scripted.*environment variable TEACHER_KEY"):
        run(rows(1), provider(server, key_env="TEACHER_KEY"), files)
    assert server.counts()["total"] == 0
    with pytest.raises(ValueError, match="no/such/file"):
        Provider("p", "http://localhost", key_file="/no/such/file").key()


def outage(
    server: Scripted, files: Files, asked: Sequence[int], back_after_s: float | None, **fields: Any
) -> dict[str, Any]:
    """Ask rows two at a time; after the third answer the provider is away (None: and stays so)."""

    async def work() -> dict[str, Any]:
        answers = dict[str, Any]()
        with Ledger(files) as ledger:
            async for name, answer in drive(rows(*asked), provider(server, attempts=2, **fields), ledger, 2):
                answers[name] = answer
                if len(answers) == 3:
                    server.reset(Faults(fault="500", first=0, latency_s=0.01))
                    if back_after_s is not None:
                        Timer(back_after_s, server.reset, [Faults()]).start()
        return answers

    return asyncio.run(work())


def test_a_provider_that_goes_away_for_a_while_costs_no_row(scripted: Callable[..., Scripted], files: Files) -> None:
    """Each row's two attempts take 10 ms; the provider is away for a second."""
    answers = outage(scripted(latency_s=0.01), files, range(12), back_after_s=1.0)
    assert [k for k, a in answers.items() if a.refused] == []
    assert len(answers) == 12
    assert max(a.attempts for a in answers.values()) > 2


def test_while_a_provider_is_away_its_client_says_so(scripted: Callable[..., Scripted], files: Files) -> None:
    """Nothing is said of a row that comes to nothing while others are answered."""
    server, heard = scripted(), set[str]()

    async def listen(client: Client) -> None:
        for _ in range(10_000):
            await asyncio.sleep(0.005)
            if client.away:
                break
        heard.update(client.away.values())
        server.reset(Faults())

    async def work() -> dict[str, str]:
        with Ledger(files) as ledger:
            async with Client(provider(server, attempts=2, patience_s=300), ledger, 1) as client:
                listening = asyncio.create_task(listen(client))
                async for name, _ in client.drive(rows(*range(6))):
                    if name == "2":
                        server.reset(Faults(fault="500", first=0))
                await listening
                return client.away

    assert asyncio.run(work()) == {}
    (said,) = heard
    assert said.startswith("provider 'scripted' (http://127.0.0.1:")
    assert "answers nothing (HTTP 500" in said
    assert said.endswith("; it is asked again for up to 5 min, its rows wait")


def test_rows_lost_to_a_provider_that_stays_away_are_asked_in_the_next_run(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    """At most two at a time have no reply, fewer than any breaker would count."""
    with pytest.raises(ProviderDown, match=r"is away: \d requests? ha(s|ve) no reply \(after 2 attempts: HTTP 500"):
        outage(scripted(latency_s=0.01), files, range(9), back_after_s=None, patience_s=0.5)
    server = scripted()
    with Ledger(files) as ledger:
        there = sum(request(k).key in ledger for k in range(9))
    answers = run(rows(*range(9)), provider(server), files)
    assert 3 <= there < 9
    assert server.counts()["total"] == 9 - there
    assert [k for k, a in answers.items() if a.refused] == []


def test_a_provider_that_never_answered_is_not_waited_for(scripted: Callable[..., Scripted], files: Files) -> None:
    """Its URL may be wrong. What other runs had of it is kept."""
    with Scripted() as server:
        run(rows(*range(10)), provider(server), files)
        url = server.url
    began = time.monotonic()
    with pytest.raises(ProviderDown, match=r"is away: \d+ requests? .*Connect.*1 attempt to ask anything else"):
        run(rows(*range(100)), Provider("scripted", url, attempts=2, backoff_s=0.01), files)
    assert time.monotonic() - began < 60 < Provider("scripted", url).patience_s
    with Ledger(files) as ledger:
        assert len(ledger) == 10


def test_a_provider_that_is_back_for_each_question_and_away_for_each_row_ends_the_run(files: Files) -> None:
    """Row 1 is answered; row 2 never, and what else is asked fails once each time before it is answered."""
    asked, questions = 0, 0

    async def complete(http: web.Request) -> web.Response:
        nonlocal asked, questions
        said = (await http.json())["messages"][0]["content"]
        asked += said == request(2).messages[0].content
        questions += said == QUESTION.content
        away = said == request(2).messages[0].content or (said == QUESTION.content and questions % 2)
        return web.Response(status=503) if away else web.Response(body=completion({"content": "Oh."}))

    async def work() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        async with TestServer(app) as server:
            place = Provider("scripted", str(server.make_url("/v1")), attempts=2, backoff_s=0.001)
            with Ledger(files) as ledger:
                async for _ in drive(rows(1, 2), place, ledger, 1):
                    pass

    with pytest.raises(ProviderDown, match="comes and goes: 12 attempts of one request came to nothing"):
        asyncio.run(work())
    assert (asked, questions) == (12, 12)
    with Ledger(files) as ledger:
        assert (request(1).key in ledger, request(2).key in ledger) == (True, False)


def test_a_provider_that_answers_none_of_many_rows_stops_the_run(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    """It answers a short question, and no row of ours."""
    lost = sorted(hit(0.5, range(100)))[:30]
    with pytest.raises(ProviderStopped, match=r"20 requests in a row were given up.*raise timeout_s"):
        run(rows(*lost), provider(scripted(fault="500", first=0, share=0.5), attempts=1), files, in_flight=4)


def test_a_request_that_is_always_refused_stops_the_run(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="400", first=0)
    with pytest.raises(ProviderStopped, match="refused the first 20 requests"):
        run(rows(*range(500)), provider(server), files)
    assert server.counts()["total"] <= 20 + 16


def test_another_model_than_asked_for_is_an_alarm_until_it_is_allowed(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    server = scripted(fault="other_model", first=0)
    with pytest.raises(ProviderStopped, match=r"asked for model 'rule-teacher-1', 'some-other-model' answered.*served"):
        run(rows(1), provider(server), files)
    allowed = provider(server, served=("some-other-model",))
    assert run(rows(1), allowed, files)["1"].model_served == "some-other-model"
    assert server.counts()["total"] == 1  # the reply was paid for: allowing it costs nothing
    mended = scripted()
    assert run(rows(1), provider(mended), files)["1"].model_served == "rule-teacher-1"


def test_a_model_that_another_one_answers_for_is_paid_one_reply_a_run(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    server = scripted(fault="other_model", first=0, latency_s=0.05)
    asked = 0
    for n in range(3):
        with pytest.raises(ProviderStopped, match=r"served = \['some-other-model'\] in \[providers.scripted\]"):
            run(rows(*range(12)), provider(server), files, in_flight=8)
        before, asked = asked, server.counts()["total"]
        assert 8 <= asked <= 12 if n == 0 else asked == before + 1
    server = scripted(latency_s=0.02)
    answers = run(rows(*range(12)), provider(server), files, in_flight=8)
    assert {a.model_served for a in answers.values()} == {"rule-teacher-1"}
    assert server.counts()["total"] == 12
    assert server.counts()["most_in_flight"] > 1, "one by one until the first answer alone"


def test_the_dated_version_of_a_model_is_that_model(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="dated_model")
    assert run(rows(1), provider(server), files)["1"].model_served == "rule-teacher-1-2024-08-06"
    place = Provider("p", "http://localhost")
    accepted = [place.accepts(asked, served) for asked, served in [
        ("gpt-4o", "gpt-4o-2024-08-06"), ("gpt-4", "gpt-4-0613"), ("gemini-1.5-pro", "gemini-1.5-pro-002"), ("m", None),
    ]]  # fmt: skip
    other = [place.accepts(asked, served) for asked, served in [
        ("gpt-4o", "gpt-4o-mini"), ("gpt-4", "gpt-4-32k"), ("gpt-4", "gpt-4o"), ("gpt-4o-2024-08-06", "gpt-4o"),
    ]]  # fmt: skip
    assert (all(accepted), any(other)) == (True, False)


def test_equal_requests_are_one_call_and_samples_are_several(scripted: Callable[..., Scripted], files: Files) -> None:
    same = [(str(k), asking(request(1))) for k in range(30)] + [(f"s{k}", asking(request(1, sample=k))) for k in (1, 2)]
    server = scripted(latency_s=0.05)
    answers = run(same, provider(server), files)
    assert len(answers) == 32
    assert server.counts()["total"] == 3


def test_no_more_than_asked_for_are_in_flight(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(latency_s=0.02)
    run(rows(*range(60)), provider(server), files, in_flight=7)
    assert server.counts()["most_in_flight"] == 7
    run(rows(*range(100, 130)), provider(server, in_flight=3), files, in_flight=7)
    server = scripted(latency_s=0.02)
    run(rows(*range(200, 230)), provider(server, in_flight=3), files, in_flight=7)
    assert server.counts()["most_in_flight"] == 3


def test_askings_are_taken_as_they_are_needed(scripted: Callable[..., Scripted], files: Files) -> None:
    taken = 0

    def many() -> Iterable[tuple[str, Asking[Answer]]]:
        nonlocal taken
        for k in range(10_000):
            taken += 1
            yield str(k), asking(request(k))

    async def few(place: Provider) -> None:
        with Ledger(files) as ledger:
            answered = drive(many(), place, ledger, 8)
            async for _ in answered:
                break
            await answered.aclose()

    server = scripted(latency_s=0.05)
    asyncio.run(few(provider(server)))
    total = server.counts()["total"]
    assert server.counts()["in_flight"] == 0
    assert taken < 600
    with Ledger(files) as ledger:
        assert len(ledger) == total  # what was in flight when we left was paid for, and is kept


def test_what_a_generator_raises_ends_the_run_and_what_is_in_flight_is_kept(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    def faulty() -> Asking[Answer]:
        yield request(0)
        raise LookupError("a fault of ours")

    server = scripted(latency_s=0.1)
    with pytest.raises(LookupError, match="a fault of ours"):
        run([("0", faulty()), *rows(*range(1, 200))], provider(server), files, in_flight=8)
    with Ledger(files) as ledger:
        assert len(ledger) == server.counts()["total"] < 50


def test_a_text_that_no_json_can_carry_costs_one_row(scripted: Callable[..., Scripted], files: Files) -> None:
    bad = Request("scripted", "rule-teacher-1", (Turn("user", "half a pair \ud800"),))
    server = scripted()
    answers = run([("bad", asking(bad)), *rows(1)], provider(server), files)
    assert "cannot be encoded" in answers["bad"].refused
    assert answers["1"].refused is None


def test_a_pause_holds_up_all_requests_of_the_provider(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="429", share=0.3, retry_after="0.4")
    counts = Counts()
    run(rows(*range(10)), provider(server), files, in_flight=1, counts=counts)
    times = sorted(at for _, at in server.counts()["finished"])
    pauses = sum(b - a > 0.35 for a, b in itertools.pairwise(times))
    assert counts.limited > 0
    assert pauses >= counts.limited - 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("7") == 7.0
    assert retry_after_s("0.25") == 0.25
    assert retry_after_s(formatdate(1_000_010, usegmt=True), now_s=1_000_000) == 10.0
    assert retry_after_s(formatdate(999_000, usegmt=True), now_s=1_000_000) == 0.0
    assert [retry_after_s(v) for v in (None, "soon", "")] == [None, None, None]


def test_a_retry_after_that_is_no_number_is_as_if_absent() -> None:
    assert [retry_after_s(v) for v in ("nan", "Wed, 21 Oct 99999999 07:28:00 GMT")] == [None, None]


def completion(message: Any, **fields: Any) -> bytes:
    body = {"model": "rule-teacher-1", "choices": [{"message": message, "finish_reason": "stop"}]}
    return orjson.dumps(body | fields)


@pytest.mark.parametrize(
    "usage",
    [
        [1],
        "5",
        {"prompt_tokens": "5", "completion_tokens": "3"},
        {"prompt_tokens": -5000, "completion_tokens": -3000},
        {"prompt_tokens": 5.5, "completion_tokens": 1e3},
        {"prompt_tokens": True, "completion_tokens": 10**18},
    ],
)
def test_what_is_no_count_of_tokens_is_unknown(usage: Any) -> None:
    raw = completion({"content": "Oh."}, usage=usage)
    answer = read_reply(Provider("p", "http://x"), request(1), 200, {}, raw)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.tokens_in, answer.tokens_out) == ("Oh.", None, None)


@pytest.mark.parametrize(
    "raw",
    [
        completion({"content": 5}),
        completion({"content": [{"type": "text", "text": "Oh."}]}),
        completion({"content": "Oh.", "refusal": True}),
        completion({"content": "Oh."}, model=5),
        completion({"content": "Oh."}, choices=[{"message": {"content": "Oh."}, "finish_reason": {"a": 1}}]),
    ],
)
def test_what_is_no_text_is_no_completion(raw: bytes) -> None:
    """The ledger would keep it, and every later run would fall over it."""
    outcome = read_reply(Provider("p", "http://x"), request(1), 200, {}, raw)
    assert isinstance(outcome, Retry)
    assert outcome.broken


def test_counts_below_nothing_give_no_dollars_back(scripted: Callable[..., Scripted], files: Files) -> None:
    """A server that counts -5,000 tokens must not lift the cap: each reply costs the most that it may."""
    server, quota = scripted(), capped(50.0)
    asked = read_reply(
        provider(server),
        request(1),
        200,
        {},
        completion({"content": "Oh."}, usage={"prompt_tokens": -5000, "completion_tokens": 1}),
    )
    bill = Bill.of(quota.prices.of("scripted", request(1).model), request(1), b"x" * 400)
    assert bill.usd(asked) == bill.most_usd > 0


def test_a_key_of_two_lines_is_refused_before_anything_is_sent(
    scripted: Callable[..., Scripted], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", f"{KEY}\nsecond")
    server = scripted()
    with pytest.raises(ValueError, match="TEACHER_KEY holds a blank or a line break") as told:
        run(rows(1), provider(server, key_env="TEACHER_KEY"), files)
    assert KEY not in str(told.value)
    assert server.counts()["total"] == 0


def test_a_short_key_is_a_word_that_replies_may_hold(
    scripted: Callable[..., Scripted], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "EMPTY", "test" or "a" are what servers of one's own are told: nothing is blotted out of their replies."""
    plain = run(rows(1), provider(scripted()), files)["1"]
    monkeypatch.setenv("TEACHER_KEY", "a")
    keyed = run(rows(1), provider(scripted(), key_env="TEACHER_KEY"), open_files(f"{files.root}/other"))["1"]
    assert keyed.text == plain.text


def test_a_long_silence_ends_the_run_and_costs_no_row(scripted: Callable[..., Scripted], files: Files) -> None:
    """A day's Retry-After: nobody waits for it, and no row is given up."""
    server = scripted(fault="429", first=1000, retry_after="86400")
    with pytest.raises(ProviderDown, match="limits the rate and asks for 86,400 s of silence"):
        run(rows(*range(8)), provider(server), files)


def test_a_limit_that_does_not_end_ends_the_run(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted(fault="429", first=1000)
    with pytest.raises(ProviderDown, match="attempts of one request came to nothing within 1 s"):
        run(rows(1, 2), provider(server, patience_s=1.0), files)


def test_a_reply_longer_than_any_completion_is_not_read_to_its_end(
    scripted: Callable[..., Scripted], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.lines.MOST_BYTES", 100)
    with pytest.raises(ProviderDown, match="the reply is longer"):
        run(rows(1), provider(scripted(), attempts=2), files)


def test_a_quota_that_is_used_up_is_no_rate_limit() -> None:
    body = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
    with pytest.raises(ProviderStopped, match=r"402.*balance"):
        read_reply(Provider("p", "http://x", key_env="K"), request(1), 429, {}, body)


@pytest.mark.parametrize("fault", ["", "401", "500", "400", "html"])
def test_the_key_is_nowhere(
    fault: Fault,
    scripted: Callable[..., Scripted],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: Any,
) -> None:
    """Not in errors, logs, output, ledger or answers, even when the server sends it back."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    said = ""
    server = scripted(fault=fault, first=0, echo_key=True)
    try:
        said = repr(run(rows(1), provider(server, key_env="TEACHER_KEY", attempts=2), files))
    except (ProviderStopped, ProviderDown) as error:
        said = repr(error)
    assert server.counts()["keys_seen"] > 0
    stored = b"".join(p.read_bytes() for p in Path(files.root).rglob("*") if p.is_file()).decode()
    out = capfd.readouterr()
    for text in (said, caplog.text, stored, out.out, out.err, repr(provider(server, key_env="TEACHER_KEY"))):
        assert KEY not in text
    assert said


# ---------------------------------------------------------------- dollars and rates

DEAR = Price(usd_per_million_in=100.0, usd_per_million_out=1000.0, as_of="always")
"""A prompt of these tests (about 160 bytes, 5 words) is counted as 5 tokens; a reply may have 200."""


def capped(max_usd: float, price: Price | None = DEAR) -> Here:
    prices = Prices(own={} if price is None else {request(0).model: price}, free=())
    return Here(Authority(otherwise=Limit(math.inf), max_usd=max_usd), prices)


def spend(askings: Sequence[tuple[str, Asking[Any]]], place: Provider, files: Files, quota: Here, ends: int) -> int:
    """Ask in two workers of one quota, half of the rows each; `ends` of them must end at the cap. Replies that came."""
    came, stopped = 0, 0

    async def worker(rows: Iterable[tuple[str, Asking[Any]]], ledger: Ledger) -> None:
        nonlocal came, stopped
        try:
            async for _ in drive(rows, place, ledger, 8, quota=quota):
                came += 1
        except BudgetSpent:
            stopped += 1

    async def both() -> None:
        with Ledger(files) as one, Ledger(files) as other:
            ended = await asyncio.gather(
                worker(askings[::2], one), worker(askings[1::2], other), return_exceptions=True
            )  # no ledger is closed while the other worker uses it
        for error in filter(None, ended):
            raise error

    asyncio.run(both())
    assert stopped == ends
    return came


def test_the_cap_holds_over_two_workers_and_the_next_run_goes_on(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    server, quota = scripted(latency_s=0.02), capped(1.0)
    spend(list(rows(*range(100))), provider(server), files, quota, ends=2)
    with Ledger(files) as ledger:
        kept = [ledger.get(request(k).key) for k in range(100) if request(k).key in ledger]
    paid = sum(DEAR.usd(a.tokens_in or 0, a.tokens_out or 0) for a in kept if a)
    spending = quota.authority.budget.spending
    assert spending.paid_usd == pytest.approx(paid)
    assert spending.reserved_usd == 0
    worst = DEAR.usd(len(orjson.dumps(request(99).body)), 200)
    assert 1.0 - worst - 1e-6 <= paid <= 1.0
    assert server.counts()["total"] == len(kept) < 100
    came = spend(list(rows(*range(100))), provider(server), files, capped(100.0), ends=0)
    assert came == 100
    assert server.counts()["total"] == 100  # nothing was paid for twice


def test_a_cap_of_nothing_sends_nothing(scripted: Callable[..., Scripted], files: Files) -> None:
    server = scripted()
    spend(list(rows(1, 2)), provider(server), files, capped(0.0), ends=2)
    assert server.counts()["total"] == 0


def test_what_may_have_been_billed_counts_at_its_worst(scripted: Callable[..., Scripted], files: Files) -> None:
    """Every first attempt is cut off after it was sent; every second one is answered."""
    server, quota = scripted(fault="reset", first=1), capped(50.0)
    spend(list(rows(*range(6))), provider(server), files, quota, ends=0)
    worst = sum(DEAR.usd(len(orjson.dumps(request(k).body)), 200) for k in range(6))
    with Ledger(files) as ledger:
        answers = [ledger.get(request(k).key) for k in range(6)]
    answered = sum(DEAR.usd(a.tokens_in or 0, a.tokens_out or 0) for a in answers if a)
    assert quota.authority.budget.spending.paid_usd == pytest.approx(worst + answered)


@pytest.mark.parametrize("fault", ["429", "500"])
def test_errors_cost_nothing(fault: Fault, scripted: Callable[..., Scripted], files: Files) -> None:
    server, quota = scripted(fault=fault, first=1, retry_after="0.05"), capped(50.0)
    spend(list(rows(1)), provider(server), files, quota, ends=0)
    with Ledger(files) as ledger:
        answer = ledger.get(request(1).key)
    assert answer is not None
    assert quota.authority.budget.spending.paid_usd == pytest.approx(DEAR.usd(answer.tokens_in, answer.tokens_out))


def test_a_cap_without_a_price_is_refused_before_anything_is_sent(
    scripted: Callable[..., Scripted], files: Files
) -> None:
    server = scripted()
    with pytest.raises(ValueError, match=rf"price of scripted/{request(0).model} is unknown.*\[prices\."):
        spend(list(rows(1, 2)), provider(server), files, capped(1.0, price=None), ends=0)
    assert server.counts()["total"] == 0


def test_a_limit_that_the_provider_tells_is_kept(scripted: Callable[..., Scripted], files: Files) -> None:
    server, counts = scripted(limits=Limits(per_s=100, tells=True)), Counts()
    began = time.monotonic()
    answers = run(rows(*range(150)), provider(server), files, counts=counts, in_flight=32)
    assert all(a.refused is None for a in answers.values())
    assert time.monotonic() - began > 1.0
    assert counts.limited <= 32  # those that were under way when the first reply told it


def test_429s_slow_everybody_down_and_end(scripted: Callable[..., Scripted], files: Files) -> None:
    server, counts = scripted(limits=Limits(per_s=50)), Counts()
    answers = run(rows(*range(150)), provider(server), files, counts=counts, in_flight=64)
    assert all(a.refused is None for a in answers.values())
    assert counts.calls == 150 + counts.limited
    assert counts.limited < 300
