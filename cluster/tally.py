"""Calls and dollars of a run, in words: how many, how many a second of late, spent, and to come."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.estimate import LEAST_WORTH, Estimate
from empathy.words import counted, dollars

if TYPE_CHECKING:
    from cluster.quota import Seen
    from serving.rates import Route

RATE_S = 30.0
"""Calls a second are those of the last so many seconds."""


class Tally:
    """`asking`: the threads (`Sort.thread`) that send requests, and to whom; None: to somebody who sends no bill."""

    def __init__(self, asking: Mapping[str, Route | None] | None = None):
        self._asking = dict(asking or {})
        self._batched = 0
        self._seen: Seen | None = None
        self._calls: deque[tuple[float, int]] = deque()

    def batched(self, calls: int) -> None:
        """So many requests were answered that the quota does not see: those of batches."""
        self._batched += calls

    def seen(self, seen: Seen, now: float) -> None:
        """What the run's quota knows at `now` (any monotonic clock, in seconds)."""
        self._seen = seen
        if not self._number():
            self._calls.clear()  # the rate begins with the first call
        self._calls.append((now, self._number()))
        while len(self._calls) > 2 and now - self._calls[1][0] >= RATE_S:
            self._calls.popleft()

    def _number(self) -> int:
        return self._batched + (sum(asked.sent for asked in self._seen.asked.values()) if self._seen else 0)

    def said(self, estimate: Estimate) -> str:
        """ "600 calls (12.3/s), $0.12 spent, about $0.30 to come"; empty in a run that asks nobody."""
        if not self._asking or self._seen is None:
            return ""
        said = counted(calls := self._number(), "call")
        lately = calls - self._calls[0][1]
        if lately and (seconds := self._calls[-1][0] - self._calls[0][0]) > 0:
            said += f" ({lately / seconds:,.1f}/s)"
        if self._seen.spending.unpriced:
            return f"{said}, dollars unknown (a model has no price)"
        return f"{said}, ${dollars(self._seen.spending.paid_usd)} spent{self._to_come(self._seen, estimate)}"

    def _to_come(self, seen: Seen, estimate: Estimate) -> str:
        """For every model that sends a bill: as much a stage as so far."""
        usd, known, unknown = 0.0, False, False
        for thread, route in self._asking.items():
            done, left = estimate.done_and_left(thread)
            if route is None or left < 1e-9:
                continue
            if done < LEAST_WORTH or route not in seen.asked:
                unknown = True
            else:
                known, usd = True, usd + seen.asked[route].paid_usd / done * left
        if not known:
            return ", to come unknown" if unknown else ""
        return f", {'at least' if unknown else 'about'} ${usd:,.2f} to come"
