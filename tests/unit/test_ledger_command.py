"""`empathy ledger`: what was spent by whom, on what and when, and what sharing saved; sums by hand."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest

from cluster.steps.asking import ask_all
from empathy import replies
from empathy.artifact import CorruptError
from empathy.records import Dialogue, Reply, Turn
from empathy.requests import Answer, Request
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from empathy.store import Store
from jobs import cli, ledger
from serving import uses
from serving.ledger import Ledger
from serving.prices import Prices
from serving.spending import UNKNOWN, spending

PROFILE = """
store = "{store}"
[prices."m-1"]
usd_per_million_in  = 10
usd_per_million_out = 100
as_of               = "2026-11-01"
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def request(number: int, model: str = "m-1") -> Request:
    return Request("p", model, (Turn("user", f"hello {number}"),))


def line(number: int, at_s: float, **changes: object) -> str:
    fields = {"provider": "p", "model": "m-1", "tokens_in": 10, "tokens_out": 2, "at": at_s, "text": "hi\u2028"}
    return json.dumps({"key": f"{number:040x}"} | fields | changes, ensure_ascii=False, separators=(",", ":")) + "\n"


def write(store: Store, name: str, text: str) -> None:
    store.files.write(f"ledger/replies/{name}.jsonl", text.encode())


NOON = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
DAY_S = 86_400


def test_sums_by_who_model_day_and_price(store: Store) -> None:
    lines = [
        line(1, NOON),
        line(2, NOON, experiment="paper"),
        line(3, NOON + DAY_S, experiment="paper", tokens_in=5),
        line(4, NOON + DAY_S, experiment="paper", price=0.5),
        line(5, NOON, experiment="paper", model="n", tokens_out=None),
        '{"key":"' + "0" * 39 + '9","torn\n',
        line(6, NOON, experiment="paper"),
        line(7, 1e300),
        line(8, NOON, provider=None),
        line(9, NOON, model=None),
        line(10, NOON, experiment="hostile", tokens_in=-(10**9)),
    ]
    write(store, "a" * 16, "".join(lines))
    write(store, "b" * 16, line(2, NOON, experiment="other"))
    found = {
        (r["experiment"], r["model"], r["day"], r["price"]): (
            r["requests"],
            r["tokens_in"],
            r["tokens_out"],
            r["uncounted"],
        )
        for r in spending(store.files).iter_rows(named=True)
    }
    first, second = date(2026, 9, 21), date(2026, 9, 22)
    assert found == {
        (UNKNOWN, "m-1", first, 1.0): (1, 10, 2, 0),
        ("paper", "m-1", first, 1.0): (2, 20, 4, 0),
        ("paper", "m-1", second, 1.0): (1, 5, 2, 0),
        ("paper", "m-1", second, 0.5): (1, 10, 2, 0),
        ("paper", "n", first, 1.0): (1, 10, 0, 1),
        ("other", "m-1", first, 1.0): (1, 10, 2, 0),
        ("hostile", "m-1", first, 1.0): (1, 0, 2, 1),
    }


def test_the_tables_have_dollars_where_a_price_is_known(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.toml").write_text(PROFILE.format(store=store.url))
    text = [line(k, NOON, experiment="paper", tokens_in=100_000, tokens_out=10_000) for k in range(3)]
    text += [line(7, NOON, experiment="cheap", tokens_in=100_000, tokens_out=10_000, price=0.5)]
    text += [line(8, NOON, experiment="odd", model="nobody-knows")]
    write(store, "a" * 16, "".join(text))
    assert cli.main(["ledger", "--on", str(tmp_path / "p.toml")]) == 0
    said = capsys.readouterr().out
    row = {
        name: re.split(r"\s{2,}", found[0].strip())[-1]
        for name in ("paper", "cheap", "odd", "all")
        if (found := [x for x in said.splitlines() if x.startswith(f"{name} ")])
    }
    # 3 x (0.1 x $10 + 0.01 x $100) = 6; half the price of one such reply; unknown; the sum of what is known.
    assert row == {"paper": "6.00", "cheap": "1.00", "odd": "unknown", "all": ">= 7.00"}
    assert "10 in, 100 out, as of 2026-11-01; times 0.5 for 1 of 4 requests (batch API)\n" in said
    assert 'unknown: add [prices."nobody-knows"]' in said


def test_a_corrupt_artifact_is_told_and_does_not_end_the_tables(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store, "a" * 16, line(1, NOON, experiment="paper"))
    for kind in ("replies", "verdicts"):
        store.files.write(f"{kind}/{'0' * 32}/artifact.json", b"{}")
    assert cli.main(["ledger", "--store", store.url]) == 0
    said = capsys.readouterr().out
    assert "1 replies in" in said
    assert "sharing: no experiment has used yet" in said
    for kind in ("replies", "verdicts"):
        assert f"left out of what sharing saved: {store.url}/{kind}/{'0' * 32}/artifact.json is not readable" in said


@pytest.mark.parametrize("damage", [b"\xff", b"\0" * 30, b"\n"], ids=["a byte", "zeros", "a line's end"])
def test_a_line_damaged_inside_is_told_and_the_others_are_counted(
    damage: bytes, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = line(2, NOON).encode()
    at = broken.index(b"tokens_in")
    broken = broken[:at] + damage + broken[at + len(damage) :]
    text = line(1, NOON, experiment="paper").encode() + broken + line(3, NOON, experiment="paper").encode()
    store.files.write(f"ledger/replies/{'a' * 16}.jsonl", text)
    assert cli.main(["ledger", "--store", store.url]) == 0
    said = capsys.readouterr().out
    lines = 2 if damage == b"\n" else 1
    assert f"left out: {lines} damaged line{'s' * (lines > 1)} of {store.url}/ledger/replies/{'a' * 16}" in said
    assert "2 replies in" in said


def test_a_file_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["ledger", "--store", f"{tmp_path}/file"]) == 2
    assert f"store = '{tmp_path}/file'" in capsys.readouterr().err


def test_an_empty_store_says_so_and_stays_empty(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ledger", "--store", store.url]) == 0
    assert "no paid replies" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def test_a_real_ledger_is_read_with_who_paid(store: Store) -> None:
    for name, numbers in (("one", range(3)), ("two", range(3, 5))):
        with Ledger(store.files, experiment=name) as kept:
            for k in numbers:
                kept.record(request(k), Answer("hi", tokens_in=7, tokens_out=1))
    sums = {r["experiment"]: (r["requests"], r["tokens_in"]) for r in spending(store.files).iter_rows(named=True)}
    assert sums == {"one": (3, 21), "two": (2, 14)}


# ---------------------------------------------------------------- sharing


def teaching(store: Store, ids: range, digest: str, provider: str = "embedded", model: str = "rule-teacher-1") -> Stage:
    """A stage that asks about these dialogues; the same dialogue is the same request in every data set."""
    about = Stage(DialoguesSpec(source="test", digest=digest, split=RandomSplit()))
    writer = store.writer(about)
    rows = [Dialogue(f"d{k}", "g", (Turn("user", f"My dog number {k} died last week."),)) for k in ids]
    writer.write_records(0, rows, Dialogue)
    writer.commit()
    teacher = Teacher(provider=provider, model=model, turns=("{dialogue}\n\nAnswer the speaker.",))
    return Stage(RepliesSpec(responder=teacher), {"dialogues": about})


def test_what_sharing_saved(store: Store) -> None:
    """ "small" pays for 6 replies; "large" asks about those and 4 more; "third" stands on large's stage."""
    from cluster.steps.asking import Job
    from serving.providers import Provider
    from serving.scripted import Scripted

    small, large = teaching(store, range(6), "0" * 64), teaching(store, range(10), "1" * 64)
    with Scripted() as server:
        providers = {"embedded": Provider("embedded", server.url)}
        for name, stage, n in (("small", small, 6), ("large", large, 10)):
            uses.note(store.files, name, [stage])
            job = Job(stage, Reply, replies.askings, (n,))
            ask_all([job], store, providers, 0, 4, lambda *_: None, name)
        assert server.counts()["total"] == 10
    uses.note(store.files, "third", [large])
    uses.note(store.files, "third", [large])
    tokens = [(r.tokens_in or 0, r.tokens_out or 0) for r in store.get(large).read(Reply)]
    saved = ledger.savings(store, Prices()).others
    assert set(saved) == {"large", "third"}, "who came first saved nothing"
    assert (saved["large"].requests, saved["large"].tokens_in) == (6, sum(t for t, _ in tokens[:6]))
    assert (saved["third"].requests, saved["third"].tokens_out) == (10, sum(t for _, t in tokens))
    paid = {r["experiment"]: r["requests"] for r in spending(store.files).iter_rows(named=True)}
    assert paid == {"small": 6, "large": 4}


def test_a_reply_that_is_damaged_in_the_ledger_is_asked_again_and_told(store: Store) -> None:
    """Of 6 replies 2 lines are damaged inside: the stage that needs all 6 asks for 2, and its line says so."""
    from cluster.progress import Progress
    from cluster.steps.asking import Job
    from serving.providers import Provider
    from serving.scripted import Scripted

    lines = list[str]()
    progress = Progress(lines.append)
    stages = [teaching(store, range(6), str(k) * 64) for k in range(2)]
    progress.begin(stages)
    with Scripted() as server:
        providers = {"embedded": Provider("embedded", server.url)}
        for stage in stages:
            ask_all([Job(stage, Reply, replies.askings, (6,))], store, providers, 0, 4, progress.units)
            progress.finished(stage, store.get(stage).counts)
            for journal in (Path(store.url) / "ledger" / "replies").glob("*.jsonl"):
                journal.write_bytes(journal.read_bytes().replace(b'"text":', b'"txet":', 2))
        assert server.counts()["total"] == 6 + 2
    first, second = (line for line in lines if "made (" in line)
    assert "damaged" not in first
    assert "(2 calls, 2 damaged in the ledger and asked again, 4 from the ledger, " in second


def test_what_a_maker_had_before_is_not_counted_and_the_table_says_so(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "small" has 4 of its 6 replies from before it made the stage; "third" takes the stage, "fourth" its replies."""
    from cluster.steps.asking import Job
    from serving.providers import Provider
    from serving.scripted import Scripted

    before, whole, again = (teaching(store, range(n), str(k) * 64) for k, n in enumerate((4, 6, 6)))
    with Scripted() as server:
        providers = {"embedded": Provider("embedded", server.url)}
        for name, stage, n in (("small", before, 4), ("small", whole, 6), ("fourth", again, 6)):
            ask_all([Job(stage, Reply, replies.askings, (n,))], store, providers, 0, 4, lambda *_: None, name)
        assert server.counts()["total"] == 6
    uses.note(store.files, "third", [whole])
    saved = ledger.savings(store, Prices()).others
    assert {name: s.requests for name, s in saved.items()} == {"third": 2, "fourth": 6}
    assert cli.main(["ledger", "--store", store.url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "saved by sharing (at least)" in said
    assert "not what their makers had in the ledger already" in said


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"experiment": "small", "stages": "replies/x"}'])
def test_a_damaged_note_of_uses_is_named_and_left_out(
    damaged: bytes, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = teaching(store, range(1), "0" * 64)
    for name in ("small", "third"):
        uses.note(store.files, name, [stage])
    (path,) = store.files.list(f"{uses.FOLDER}/small")
    store.files.write(path, damaged)
    write(store, "w", line(1, NOON))
    assert cli.main(["ledger", "--store", store.url]) == 0
    assert f"{path} is damaged: delete it; the experiment's next run writes it anew" in capsys.readouterr().out
    told = list[CorruptError]()
    assert uses.uses(store.files, told.append) == {"third": {f"replies/{stage.key}": 1}}
    assert len(told) == 1
    with pytest.raises(CorruptError, match="is damaged"):
        uses.uses(store.files)
    store.files.delete(path)
    uses.note(store.files, "small", [stage])
    assert uses.uses(store.files)["small"] == {f"replies/{stage.key}": 1}


def test_what_arms_share_among_themselves_is_saved_once_less_than_they_are(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three arms need a stage of 5 answers (7 calls, of which 2 came to nothing) with 100,000 tokens in and 10,000 out:
    $2 at $10 and $100 a million, saved twice. A stage of one arm saves nothing; the largest number of notes counts."""
    (tmp_path / "p.toml").write_text(PROFILE.format(store=store.url))
    write(store, "w", line(1, NOON))
    shared, single = (teaching(store, range(n), str(n) * 64, provider="p", model="m-1") for n in (5, 3))
    for stage in (shared, single):
        writer = store.writer(stage)
        counts = {"calls": 7, "retries": 2, "tokens_in": 100_000, "tokens_out": 10_000}
        writer.write_records(0, [], Reply, counts)
        writer.commit(made={"experiment": "grid"})
    uses.note(store.files, "grid", [shared, single], {shared.key: 2, single.key: 1})
    uses.note(store.files, "grid", [shared], {shared.key: 3})
    uses.note(store.files, "grid", [shared])
    assert uses.uses(store.files) == {"grid": {f"replies/{shared.key}": 3, f"replies/{single.key}": 1}}
    saved = ledger.savings(store, Prices())
    assert (saved.others, saved.arms["grid"].requests) == ({}, 10)
    assert cli.main(["ledger", "--on", str(tmp_path / "p.toml")]) == 0
    said = capsys.readouterr().out
    table = said[said.index("saved by sharing among arms (at least)") :].splitlines()
    assert table[1].split() == ["grid", "10", "200,000", "20,000", "4.00"]
    assert "sharing: no experiment has used yet what another one paid for" in said


def test_notes_of_before_arms_were_kept_save_nothing_among_arms(store: Store) -> None:
    stage = teaching(store, range(2), "0" * 64)
    note = {"experiment": "old", "stages": [f"replies/{stage.key}"]}
    store.files.write(f"{uses.FOLDER}/old/0.json", json.dumps(note).encode())
    assert uses.uses(store.files) == {"old": {f"replies/{stage.key}": 1}}
    uses.note(store.files, "one", [stage], {stage.key: 1})
    (path,) = store.files.list(f"{uses.FOLDER}/one")
    assert json.loads(store.files.read(path)) == note | {"experiment": "one"}, "a stage of one arm is noted as it was"
