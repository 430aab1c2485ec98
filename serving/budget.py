"""The run's dollars: a hard cap over all workers, kept by the authority (`serving.quota`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from empathy.words import counted, dollars


class BudgetSpent(ValueError):
    """The next call could pass the run's cap in dollars."""


def unpriced(routes: Sequence[tuple[str, str]]) -> ValueError:
    """What to say when dollars are capped and the price of some (provider, model) is unknown."""
    names = ", ".join(f"{provider}/{model}" for provider, model in routes)
    table = f'[prices."{routes[0][0]}/{routes[0][1]}"]'
    return ValueError(
        f"max_usd: the price of {names} is unknown, so a cap cannot be kept; add a table {table} with "
        f"usd_per_million_in, usd_per_million_out and as_of to the profile, or leave --max-usd out"
    )


@dataclass
class Spending:
    """Dollars of the run so far: paid (or perhaps billed), and reserved for calls that are under way."""

    max_usd: float | None
    paid_usd: float
    reserved_usd: float
    unpriced: int
    """Calls whose price is unknown: what they cost is not in `paid_usd`."""
    unmade_usd: float = 0.0
    """What the call that did not fit any more could cost."""

    @property
    def least_max_usd(self) -> float:
        """The least cap at which that call is made by a run that has paid nothing yet, to a hundredth of a cent."""
        return math.ceil(self.unmade_usd * 1e4 - 1e-6) / 1e4

    @property
    def next_max_usd(self) -> float | None:
        """The cap to go on with: this one, unless it is too small for that call alone. Then twice what it takes, for
        the next run may come to another call first, which may cost more."""
        if self.max_usd is None or self.unmade_usd <= self.max_usd:
            return self.max_usd
        return 2 * self.least_max_usd

    def __str__(self) -> str:
        cap = "" if self.max_usd is None else f" of {dollars(self.max_usd)}"
        more = f" + {counted(self.unpriced, 'call')} of unknown price" if self.unpriced else ""
        return f"${dollars(self.paid_usd)}{cap}{more}"


class Budget:
    """A hard cap: what is paid plus what is reserved for calls under way never passes `max_usd` (None: no cap).

    A call that does not fit waits while others may still cost less than was reserved for them; when none is under way
    any more, the budget is spent for good. What dead workers had reserved counts as paid.
    """

    def __init__(self, max_usd: float | None = None):
        if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
            raise ValueError(f"max_usd = {max_usd}: give dollars, 0 or more")
        self.max_usd, self.paid_usd, self.unpriced = max_usd, 0.0, 0
        self.spent: str | None = None
        self._unmade_usd = 0.0
        self._reserved: dict[str, float] = {}

    @property
    def capped(self) -> bool:
        return self.max_usd is not None

    @property
    def spending(self) -> Spending:
        return Spending(self.max_usd, self.paid_usd, sum(self._reserved.values()), self.unpriced, self._unmade_usd)

    def settle(self, worker: str, paid_usd: float, freed_usd: float) -> None:
        """Reservations of `worker` ended: `paid_usd` is their cost, `freed_usd` what they did not need (negative: they
        cost more than was reserved)."""
        self.paid_usd += paid_usd
        left = self._reserved.get(worker, 0.0) - paid_usd - freed_usd
        if left > 1e-9:
            self._reserved[worker] = left
        else:
            self._reserved.pop(worker, None)

    def reserve(self, worker: str, want_usd: float, least_usd: float, alive: frozenset[str]) -> float:
        """Up to `want_usd`; 0 when not even `least_usd` is there."""
        if self.max_usd is None or self.spent or want_usd <= 0:
            return 0.0 if self.capped else want_usd
        room = self.max_usd - self.paid_usd - sum(self._reserved.values())
        if least_usd <= room + 1e-9:
            self._reserved[worker] = self._reserved.get(worker, 0.0) + (given := min(want_usd, max(room, least_usd)))
            return given
        if not alive.intersection(self._reserved):
            self._unmade_usd = least_usd
            self.spent = (
                f"max_usd = {self.max_usd:g}: ${self.paid_usd:.4f} is spent in this run, and the next call could cost "
                f"${least_usd:.4f}, which would pass the cap"
            )
            if least_usd > self.max_usd:
                enough = self.spending.least_max_usd
                self.spent += f"; no run with this cap can make it: {enough} is the least that lets it through"
            if lost := sum(self._reserved.values()):
                self.spent += f" (${lost:.4f} are set aside for calls whose worker died)"
        return 0.0
