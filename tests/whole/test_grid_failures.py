"""What fails fails alone, through the real asking lane without Ray: a provider that is down, a cap that is reached."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import runner
from cluster.executors import Context
from cluster.profile import Asking, Profile, ProviderPlace
from cluster.progress import Progress
from cluster.quota import RunQuota
from empathy.records import Dialogue, Turn
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from empathy.store import Store
from jobs.run import again, failed_table
from serving.prices import Price, Prices
from serving.providers import Provider
from serving.scripted import Faults, Scripted

MODEL = "rule-teacher-1"
ELSEWHERE = ProviderPlace(base_url="http://127.0.0.1:1/v1")  # where they are stands in the context
PROFILE = Profile(ask=Asking(workers=0, in_flight=2), providers={"scripted": ELSEWHERE, "down": ELSEWHERE})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(Faults()) as running:
        yield running


@pytest.fixture
def down() -> Provider:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return Provider("down", f"http://127.0.0.1:{port}/v1", attempts=1)


def dialogues(store: Store) -> Stage:
    stage = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit(), part_rows=8))
    if store.done(stage):
        return stage
    writer = store.writer(stage)
    writer.write_records(
        0, [Dialogue(f"d{k}", "g", (Turn("user", f"I lost my key number {k}."),)) for k in range(8)], Dialogue
    )
    writer.commit()
    return stage


def replies(store: Store, provider: str, text: str = "Answer the speaker.", improves: Stage | None = None) -> Stage:
    teacher = Teacher(provider=provider, model=MODEL, turns=(f"{{dialogue}}\n\n{text}",))
    inputs = {"dialogues": dialogues(store) if improves is None else improves.inputs["dialogues"]}
    label = f"{provider}: {text}"
    return Stage(RepliesSpec(responder=teacher), inputs | ({"improves": improves} if improves else {}), label=label)


def test_a_provider_that_is_down_fails_its_own_stages_and_what_stands_on_them(
    store: Store, server: Scripted, down: Provider
) -> None:
    fine, lost = replies(store, "scripted"), replies(store, "down")
    behind = replies(store, "scripted", "Improve this: {reply}", improves=lost)
    providers = {"scripted": Provider("scripted", server.url), "down": down}
    lines: list[str] = []
    context = Context(store, PROFILE, Progress(out=lines.append), providers)
    outcome = runner.run([fine, lost, behind], context)
    assert outcome.made == 1
    assert store.get(fine).rows == 8
    assert [(f.stage.key, f.behind, f.left) for f in outcome.failures] == [(lost.key, 1, False)]
    assert outcome.open == 2
    table = failed_table(outcome.failures, outcome.open, again("x y.toml", None, "s3://b/p", ["sft*"], None, 2.5))
    assert "2 stages are not made" in table
    assert "provider 'down'" in table
    assert "empathy run 'x y.toml' --store s3://b/p --max-usd 2.5 --only 'sft*'" in table
    assert "Traceback" not in table + "".join(lines)
    later = runner.run(
        [fine, lost, behind], Context(store, PROFILE, Progress(), providers | {"down": Provider("down", server.url)})
    )
    assert later == runner.Outcome(2)


def test_a_reached_cap_leaves_the_rest_for_the_next_run_and_nothing_failed(store: Store, server: Scripted) -> None:
    """The price lets exactly none of the second stage's calls through once the first is paid: what is left says so."""
    stages = [replies(store, "scripted", f"Answer in way {k}.") for k in range(3)]
    prices = Prices({MODEL: Price(usd_per_million_in=1e5, usd_per_million_out=1e5, as_of="always")}, ())

    def run(max_usd: float | None) -> tuple[runner.Outcome, RunQuota]:
        quota = RunQuota(0, {}, prices, max_usd)
        providers = {"scripted": Provider("scripted", server.url)}
        return runner.run(stages, Context(store, PROFILE, Progress(), providers, "test", quota)), quota

    whole_usd = 3 * 8 * 0.1 * (20 + 200)  # more than all calls can cost: 20 tokens in, at most 200 out, 10 cents each
    stopped, quota = run(whole_usd / 40)
    assert stopped.failures
    assert all(f.left and not f.behind for f in stopped.failures)
    assert quota.spending.paid_usd <= whole_usd / 40
    asked = server.counts()["distinct"]
    assert asked < 24
    finished, _ = run(None)
    assert not finished.failures
    assert server.counts() | {"finished": 0, "asked": 0, "most_in_flight": 0, "in_flight": 0} == server.counts() | {
        "total": 24, "distinct": 24, "finished": 0, "asked": 0, "most_in_flight": 0, "in_flight": 0}  # fmt: skip
