"""The board between the driver and its training workers: orders out in one sequence, news back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class News:
    """`told`: (done, of) of each stage by key since the last news: the first word, the last, and each that another one
    falls behind. `ends`: what became of the orders that ended: None, or the error's type and text. `losses`: since the
    last news, why a group was broken up, by rank. `refused`: why workers gave up. `is_up`: whether workers have asked
    for orders."""

    told: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    ends: list[tuple[str, str] | None] = field(default_factory=list)
    losses: list[dict[int, str]] = field(default_factory=list)
    refused: str | None = None
    is_up: bool = False


class Board:
    """What the actor does. Who asks for what is not there yet waits a little: nobody asks in a hurry."""

    def __init__(self) -> None:
        self._orders: list[dict[str, Any]] = []
        self._closed = False
        self._news = News()
        self._changed = asyncio.Condition()

    async def put(self, order: dict[str, Any]) -> None:
        self._orders.append(order)
        await self._wake()

    async def close(self) -> None:
        self._closed = True
        await self._wake()

    async def order(self, number: int, patience_s: float) -> tuple[dict[str, Any] | None, bool]:
        """Order `number` (None when it has not come in time), and whether none will come."""
        await self._wait(lambda: number < len(self._orders) or self._closed, patience_s)
        return (self._orders[number] if number < len(self._orders) else None), self._closed

    async def first_open(self) -> int:
        """The first order that has not ended: where a group begins."""
        self._news.is_up = True
        await self._wake()
        return len(self._news.ends)

    async def tell(self, key: str, done: int, total: int) -> None:
        told = self._news.told.setdefault(key, [])
        if len(told) > 1 and told[-2][0] <= told[-1][0] <= done:
            told[-1] = (done, total)
        else:
            told.append((done, total))

    async def end(self, number: int, error: tuple[str, str] | None) -> None:
        """Order `number` has ended."""
        assert number == len(self._news.ends), "orders are worked off one after another"
        self._news.ends.append(error)
        await self._wake()

    async def lose(self, reasons: dict[int, str]) -> None:
        """These ranks ended, and with them their group."""
        self._news.losses.append(reasons)
        await self._wake()

    async def refuse(self, reason: str) -> None:
        self._news.refused = self._news.refused or reason
        await self._wake()

    async def news(self, known: int, patience_s: float) -> News:
        """What there is once more than `known` orders have ended, or after `patience_s`; ends from `known` on."""

        was_up = self._news.is_up

        def is_there() -> bool:
            came_up = self._news.is_up and not was_up
            return came_up or len(self._news.ends) > known or bool(self._news.losses) or self._news.refused is not None

        await self._wait(is_there, patience_s)
        told, self._news.told = self._news.told, {}
        losses, self._news.losses = self._news.losses, []
        return News(told, self._news.ends[known:], losses, self._news.refused, self._news.is_up)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, true: Callable[[], bool], patience_s: float) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(true), patience_s)


class BoardActor:
    """A board as the driver has it; gone after the block."""

    def __init__(self) -> None:
        import ray

        self.actor: Any = ray.remote(num_cpus=0)(Board).options(max_concurrency=1000).remote()

    def call(self, name: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, name).remote(*arguments))

    def __enter__(self) -> BoardActor:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        ray.kill(self.actor)
