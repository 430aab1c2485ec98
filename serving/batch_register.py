"""Where every request of a process's batches is, and what was learnt of those who answer them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from empathy.requests import Answer
from serving.batch_breaker import Experience
from serving.batch_keeper import Entry, Keeper
from serving.providers import Batching, Provider
from serving.rates import Route

ELSEWHERE, NO_ROOM, AGAIN = "elsewhere", "no room", "again"
"""Instead of a batch's id: somebody else asks for it; no more batches may be open; look again at once."""


class Register:
    """Filled by who sends (`serving.batch_sender`) and by who collects (`serving.batch_collector`)."""

    def __init__(self, providers: Mapping[str, Provider], keeper: Keeper):
        self._providers, self._keeper = providers, keeper
        self._experience: dict[Route, Experience] = {}
        self.open: dict[str, Entry] = {}
        """Batches at providers, by the id of their note."""
        self.where: dict[str, str] = {}
        """Requests on their way -> the id of their batch."""
        self.elsewhere: set[str] = set()
        """Requests that others ask for."""
        self.ended: set[str] = set()
        """Batches that ended since somebody looked, and ELSEWHERE."""
        self.poor = False
        """Nothing can be paid before something has ended."""
        self.refused: dict[str, Answer] = {}
        """Requests that will not be answered; kept for this process alone, the ledger holds no errors."""
        self.fresh: set[str] = set()
        """Requests that were answered or refused in batches of ours."""

    def batching(self, provider: str) -> Batching:
        """How a provider's batch API is used."""
        return self._providers[provider].batch or Batching()

    def learnt(self, route: Route) -> Experience:
        """What experience with a model says."""
        if route not in self._experience:
            self._experience[route] = Experience(self.batching(route[0]).requests)
        return self._experience[route]

    def has_room(self, route: Route, baskets: Collection[Route]) -> bool:
        """Whether one more batch may be made beside those that are open and those in the making."""
        routes, learnt = [*baskets, *(entry.route for entry in self.open.values())], self.learnt(route)
        if (learnt.full or learnt.doubted) and route in routes:
            return False
        return sum(provider == route[0] for provider, _ in routes) < self.batching(route[0]).at_once

    def refuse(self, key: str, why: str) -> str:
        """A request will not be answered: AGAIN."""
        self.refused[key] = Answer("", "refused", refused=why)
        self.fresh.add(key)
        return AGAIN

    def adopted(self, entry: Entry) -> None:
        """A batch of an earlier run is in our care."""
        self.open[entry.note.id] = entry
        self.where |= dict.fromkeys(entry.keys, entry.note.id)
        self.elsewhere.difference_update(entry.keys)

    def forget_place(self, key: str, note_id: str) -> None:
        """A request is not in that batch any more."""
        if self.where.get(key) == note_id:
            del self.where[key]

    def close(self, entry: Entry, outcome: str) -> None:
        """A batch has ended: its note is closed, and what it did not answer is free."""
        self._keeper.close(entry, outcome)
        for key in entry.keys:
            self.forget_place(key, entry.note.id)
        self.open.pop(entry.note.id, None)
        self.ended.add(entry.note.id)
