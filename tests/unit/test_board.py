"""The board between driver and training workers: orders and ends in one sequence; and how ranks agree on an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.progress import Progress
from cluster.steps.board import Board
from cluster.steps.training import _Losses
from cluster.steps.training_group import ended_by, lost
from empathy.specs import LogprobsSpec
from empathy.stages import Stage
from empathy.train import group
from empathy.train.group import GroupBroken, agreed
from empathy.train.placement import Placement


async def test_every_worker_gets_the_same_orders_and_then_the_end() -> None:
    board = Board()

    async def worker() -> list[str]:
        got: list[str] = []
        while True:
            order, closed = await board.order(len(got), 5.0)
            if order is None and closed:
                return got
            assert order is not None
            got.append(order["stage"])

    workers = [asyncio.create_task(worker()) for _ in range(2)]
    for name in "abc":
        await board.put({"stage": name})
        await asyncio.sleep(0)
    await board.close()
    assert await asyncio.gather(*workers) == [["a", "b", "c"]] * 2


async def test_who_asks_too_early_is_told_after_a_while_that_nothing_has_come() -> None:
    began = time.monotonic()
    assert await Board().order(0, 0.1) == (None, False)
    assert time.monotonic() - began > 0.09


async def test_news_come_when_an_order_ends_and_a_new_group_begins_behind_it() -> None:
    board = Board()
    waiting = asyncio.create_task(board.news(0, 60.0))
    await asyncio.sleep(0.01)
    await board.tell("k", 3, 9)
    await board.end(0, ("ValueError", "no"))
    news = await asyncio.wait_for(waiting, 5)
    assert (news.told, news.ends, news.refused) == ({"k": [(3, 9)]}, [("ValueError", "no")], None)
    assert await board.first_open() == 1
    await board.end(1, None)
    later = await board.news(1, 0.0)
    assert (later.told, later.ends) == ({}, [None])


async def test_of_many_words_the_first_the_last_and_each_fall_are_news() -> None:
    """A stage is first heard of where it begins, and a loss shows where it goes on, however rarely news are read."""
    board = Board()
    for done in (0, 1, 2, 7, 4, 5, 6, 0, 3):
        await board.tell("k", done, 9)
    assert (await board.news(0, 0.0)).told == {"k": [(0, 9), (7, 9), (4, 9), (6, 9), (0, 9), (3, 9)]}
    await board.tell("k", 4, 9)
    assert (await board.news(0, 0.0)).told == {"k": [(4, 9)]}


async def test_a_loss_is_news_at_once_and_once() -> None:
    board = Board()
    waiting = asyncio.create_task(board.news(0, 60.0))
    await asyncio.sleep(0.01)
    await board.lose({1: "gone"})
    assert (await asyncio.wait_for(waiting, 5)).losses == [{1: "gone"}]
    assert (await board.news(0, 0.0)).losses == []


def test_why_a_group_ended_is_told_in_a_line() -> None:
    """Ranks that are gone took the others with them, whose errors say nothing."""

    class HealthCheckFailed(Exception):
        health_check_failure: Exception = RuntimeError("a page of Ray's advice")

    class OutOfMemoryError(Exception):
        pass

    gone, full = HealthCheckFailed("a page"), HealthCheckFailed("a page")
    full.health_check_failure = OutOfMemoryError()
    broken = RuntimeError("Traceback ...\n  File ...\nRuntimeError: connection closed by peer\n")
    assert ended_by(gone) == "its process is gone: killed, crashed, or its machine was lost"
    assert ended_by(full) == "killed by Ray: its machine ran out of memory"
    assert ended_by(KeyError()) == "KeyError"
    both = {0: ended_by(broken), 1: ended_by(full)}
    assert lost(both, 2) == "rank 1 of 2 ended (killed by Ray: its machine ran out of memory)"
    assert lost({0: ended_by(broken), 1: ended_by(broken)}, 2) == (
        "ranks 0, 1 of 2 ended (RuntimeError: connection closed by peer)"
    )


def test_why_no_group_could_be_kept_is_told_in_a_line() -> None:
    from cluster.steps.training import _reason

    low = RuntimeError(
        "1 worker(s) were killed due to the node running low on memory.\n...\nRefer to the documentation"
    )
    assert "ran out of memory" in _reason(low)
    assert "lower micro_batch in [train]" in _reason(low)
    assert _reason(RuntimeError("a log\n\n  NameError: x  \n")) == "its training group kept ending: NameError: x"
    assert _reason(RuntimeError()) == "its training group kept ending: RuntimeError"


def test_losses_are_counted_against_what_the_profile_allows_and_name_the_stage() -> None:
    stage, lines = Stage(LogprobsSpec(), label="held-out"), list[str]()
    losses = _Losses(Progress(out=lines.append, now_s=lambda: 0.0), Placement(workers=2), max_failures=1)
    losses.tell({1: "gone"}, stage)
    losses.tell({0: "gone"}, stage)
    assert lines == [
        "[0:00] warning: training: rank 1 of 2 ended (gone); all start again (restart 1 of at most 1); logprobs "
        "held-out goes on from what was saved last, or from its beginning where nothing was",
        "[0:00] warning: training: rank 0 of 2 ended (gone); after 1 restart they are given up",
    ]


async def test_an_order_cannot_end_before_the_one_ahead_of_it() -> None:
    with pytest.raises(AssertionError, match="one after another"):
        await Board().end(1, None)


# ---------------------------------------------------------------- ranks agree


def test_an_error_of_one_rank_is_told_to_all() -> None:
    from torch.distributed import HashStore

    def both(key: str, errors: Sequence[str | None]) -> list[str | None]:
        with ThreadPoolExecutor(2) as ranks:
            found = [ranks.submit(agreed, store, key, rank, 2, error, 30.0) for rank, error in enumerate(errors)]
            return [future.result() for future in found]

    store = HashStore()
    assert both("0", [None, None]) == [None, None]
    assert both("1", [None, "rank 1 has no file"]) == ["rank 1 has no file"] * 2
    assert both("2", ["one", "two"]) == ["one", "one"]


def test_a_rank_that_stays_away_breaks_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error of our own it is not waited for as long: it may be waiting for us in a collective."""
    from torch.distributed import HashStore

    monkeypatch.setattr(group, "DISAGREED_S", 0.1)
    with pytest.raises(GroupBroken, match="rank 1: lost"):
        agreed(HashStore(), "0", 1, 2, "lost", 3600.0)
    with pytest.raises(GroupBroken, match="did not come"):
        agreed(HashStore(), "0", 1, 2, None, 0.1)
