"""The board between driver and training workers: orders and ends in one sequence; and how ranks agree on an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.steps.board import Board
from empathy.train import group
from empathy.train.group import GroupBroken, agreed


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
    assert (news.latest, news.ends, news.refused) == ({"k": (3, 9)}, [("ValueError", "no")], None)
    assert await board.first_open() == 1
    await board.end(1, None)
    later = await board.news(1, 0.0)
    assert (later.latest, later.ends) == ({}, [None])


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
