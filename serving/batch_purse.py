"""Dollars for whole batches out of a run's budget: the worst case is set aside before a batch is created."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from types import TracebackType

from empathy.requests import Answer, Request
from serving.budget import BudgetSpent, unpriced
from serving.quota import Quota
from serving.rates import KEEPALIVE_S, Report, Route


class Purse:
    """An async context manager; inside, it says every second that we live, as long as something is set aside.

    A batch that outlives the run counts against the run that created it, at its worst, and not against the next one.
    """

    def __init__(self, quota: Quota):
        self._quota, self._worker = quota, uuid.uuid4().hex[:12]
        self._reserved: dict[Route, float] = {}
        self._alive: asyncio.Task[None] | None = None

    def most_usd(self, request: Request, size: int, share: float) -> float:
        """What a request of `size` bytes can cost at `share` of the list price. 0 where the price is unknown and
        nothing is capped. Raises ValueError where it is unknown under a cap."""
        price = self._quota.prices.of(request.provider, request.model)
        if price is None and self._quota.capped:
            raise unpriced([(request.provider, request.model)])
        return 0.0 if price is None else share * price.usd(size, request.max_tokens)

    def cost_usd(self, route: Route, answer: Answer, share: float, most_usd: float) -> float:
        """By the tokens that the provider counted; the most, where it did not."""
        price = self._quota.prices.of(*route)
        if price is None or answer.tokens_in is None or answer.tokens_out is None:
            return most_usd
        return share * price.usd(answer.tokens_in, answer.tokens_out)

    async def reserve(self, route: Route, costs_usd: Sequence[float]) -> int:
        """Set aside what the first n requests may cost, as many as fit; n. 0: wait until something else has ended.

        Raises BudgetSpent when nothing is under way any more that could bring a cent back.
        """
        if not self._quota.capped or not costs_usd:
            return len(costs_usd)
        grant = await self._exchange(Report(route, usd_want=sum(costs_usd), usd_least=costs_usd[0]))
        fits, used = 0, 0.0
        for cost in costs_usd:
            if used + cost > grant + 1e-9:
                break
            fits, used = fits + 1, used + cost
        self._reserved[route] = self._reserved.get(route, 0.0) + grant
        await self.settle(route, 0.0, grant - used)
        return fits

    async def settle(self, route: Route, paid_usd: float, freed_usd: float, unpriced_calls: int = 0) -> None:
        """A reservation ended: what it cost, and what it did not need."""
        if not self._quota.capped:
            freed_usd = -paid_usd  # nothing was set aside
        self._reserved[route] = max(0.0, self._reserved.get(route, 0.0) - paid_usd - freed_usd)
        if paid_usd or freed_usd or unpriced_calls:
            await self._exchange(Report(route, usd_paid=paid_usd, usd_freed=freed_usd, unpriced=unpriced_calls))

    async def _exchange(self, report: Report) -> float:
        (grant,) = await self._quota.exchange(self._worker, [report])
        if grant.spent is not None and report.usd_want:
            raise BudgetSpent(grant.spent)
        return grant.usd

    async def _living(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            for route, usd in list(self._reserved.items()):
                if usd > 1e-9:
                    await self._quota.exchange(self._worker, [Report(route)])

    async def __aenter__(self) -> Purse:
        self._alive = asyncio.create_task(self._living(), name="batch-purse")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._alive is not None
        self._alive.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # ours
            await self._alive
