"""A worker's side of the quota: calls wait here for their permit, and what became of them is reported.

One task a worker exchanges reports for grants (`serving.quota`) as long as calls wait or are under way. The permits of
a lease are used evenly over it. What a call will need is estimated before it, and settled after it.
"""

from __future__ import annotations

import asyncio
import uuid
from types import TracebackType

from serving.budget import BudgetSpent, unpriced
from serving.pace import LEASE_S
from serving.prices import Price
from serving.queues import GAP_S, Permit, Queue
from serving.quota import Quota
from serving.rates import KEEPALIVE_S, Route


class Permits:
    """The permits of one worker: an async context manager in one event loop. When it is left, every call is settled."""

    def __init__(self, quota: Quota):
        self.quota, self.worker = quota, uuid.uuid4().hex[:12]
        self._queues: dict[Route, Queue] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._over: Exception | None = None
        self._closing = False

    async def take(self, route: Route, tokens: float, usd: float, again: bool = False) -> Permit:
        """Wait until one request of about `tokens` that costs at most `usd` may be sent; it must be settled after.
        One that was turned away (`again`) goes before the others.

        Raises BudgetSpent when the cap in dollars leaves no room, ProviderStopped when it needs more tokens than the
        profile allows in a minute, OSError when the authority is gone.
        """
        if self._over is not None:
            raise self._over
        queue, permit = self.queue(route), Permit(tokens, usd if self.quota.capped else 0.0)
        queue.put(permit, again)
        self._wake_in(0.0 if queue.lacks else LEASE_S)
        if permit.future is not None:
            try:
                await permit.future
            except asyncio.CancelledError:
                queue.withdraw(permit)
                raise
        return permit

    def queue(self, route: Route) -> Queue:
        """Where the calls of one route wait and are settled."""
        if route not in self._queues:
            self._queues[route] = Queue(route, self.quota.capped)
        return self._queues[route]

    def price(self, route: Route) -> Price | None:
        """None when it is unknown: then a cap in dollars cannot be kept, and the call is not made."""
        price = self.quota.prices.of(*route)
        if price is None and self.quota.capped:
            raise unpriced([route])
        return price

    def tell_soon(self) -> None:
        """Something ended: it is reported within a lease."""
        self._wake_in(LEASE_S)

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._wakes_at <= at:
                return
            self._timer.cancel()
        self._timer, self._wakes_at = loop.call_at(at, self._wake.set), at  # uvloop's handles do not tell when

    async def _exchanging(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            self._timer = None
            await self._exchange()
            await asyncio.sleep(GAP_S)
        await self._exchange()

    async def _exchange(self) -> None:
        reports = [queue.report(self._closing) for queue in self._queues.values() if queue.open]
        grants = await self.quota.exchange(self.worker, reports)
        for grant in grants:
            self._queues[grant.route].accept(grant)
            if grant.spent is not None:
                self._stop(BudgetSpent(grant.spent))
        waiting = [grant.again_s for grant in grants if self._queues[grant.route].waiting]
        if any(queue.open for queue in self._queues.values()):
            self._wake_in(min([KEEPALIVE_S, *waiting]))

    def _stop(self, error: Exception) -> None:
        self._over = error
        for queue in self._queues.values():
            queue.fail(error)

    async def _guarded(self) -> None:
        """An authority that is gone fails everybody who waits."""
        try:
            await self._exchanging()
        except Exception as error:  # re-raised in every waiting call: this task has no caller
            self._stop(error)
            raise

    async def __aenter__(self) -> Permits:
        self._task = asyncio.create_task(self._guarded(), name="quota-leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._closing = True
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)  # an exchange that is under way is finished first
        if self._timer is not None:
            self._timer.cancel()
