"""One request until something comes of it: permit, attempt, what it cost, and whether to try again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from empathy.requests import Answer, Request
from serving.claiming import Claiming
from serving.ledger import Ledger
from serving.lines import Line
from serving.permits import Permits
from serving.prices import Price
from serving.providers import Provider, ProviderDown, ProviderStopped, Retry
from serving.queues import Permit
from serving.rates import Route

BACKOFF_LIMIT_S = 30.0
BYTES_A_TOKEN = 4
"""Of English; what a prompt really had corrects the estimate afterwards."""


@dataclass
class Counts:
    """What driving did. `unknown` are attempts that ended without a response: the provider may have billed them.
    `damaged` are replies that the ledger had, and whose lines cannot be read: they are asked for again.

    `shared` are those answers from the ledger that another experiment had paid for, with their tokens.
    """

    calls: int = 0
    from_ledger: int = 0
    shared: int = 0
    shared_tokens_in: int = 0
    shared_tokens_out: int = 0
    retries: int = 0
    limited: int = 0
    unknown: int = 0
    damaged: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def had(self, answer: Answer, experiment: str) -> None:
        """`answer` came from the ledger of a run of `experiment`."""
        self.from_ledger += 1
        if answer.paid_by != experiment:
            self.shared += 1
            self.shared_tokens_in += answer.tokens_in or 0
            self.shared_tokens_out += answer.tokens_out or 0


@dataclass(frozen=True)
class Bill:
    """What one attempt may cost. `most_usd` holds for any tokeniser: no token is shorter than a byte of the body."""

    price: Price | None
    most_usd: float

    @staticmethod
    def of(price: Price | None, request: Request, body: bytes) -> Bill:
        return Bill(price, 0.0 if price is None else price.usd(len(body), request.max_tokens))

    def usd(self, outcome: Answer | Retry) -> float:
        """Dollars: by the tokens that the provider counted; the most, where it is not known whether or what it
        billed."""
        if not billed(outcome) or self.price is None:
            return 0.0
        if isinstance(outcome, Retry) or outcome.tokens_in is None or outcome.tokens_out is None:
            return self.most_usd
        return self.price.usd(outcome.tokens_in, outcome.tokens_out)


def billed(outcome: Answer | Retry) -> bool:
    """Whether the provider has, or may have, generated something. An error's status says that it has not."""
    if isinstance(outcome, Retry):
        return outcome.unknown or outcome.broken
    return outcome.finish_reason != "refused"


@dataclass(frozen=True)
class Nothing:
    """All attempts came to nothing: no row was refused, and nobody knows yet whose fault it is (`serving.blame`)."""

    reason: str
    attempts: int


class Calls:
    """Sends requests of one client. `sending` are the tasks whose request is on its way."""

    def __init__(self, permits: Permits, claiming: Claiming):
        self._permits, self._claiming = permits, claiming
        self._tokens_out: dict[Route, float] = {}
        self.sending: set[asyncio.Task[object]] = set()
        self.stopping = False

    async def persist(
        self,
        line: Line,
        request: Request,
        body: bytes,
        counts: Counts,
        attempts: float | None = None,
        in_vain: Callable[[str], None] = lambda reason: None,
    ) -> Answer | Nothing | None:
        """Attempt until something comes of it, at most `attempts` times (the provider's) and for `patience_s`;
        `in_vain` hears why an attempt came to nothing, unless it was a 429. None: the claim was lost before sending
        (we were taken for dead)."""
        at_most = line.provider.attempts if attempts is None else attempts
        provider, bill = line.provider, Bill.of(self._permits.price((request.provider, request.model)), request, body)
        first_failed_at, failed, sent, again = 0.0, 0, 0, False
        while (outcome := await self._attempt(line, request, body, bill, counts, again)) is not None:
            sent += 1
            if isinstance(outcome, Answer):
                return replace(outcome, attempts=sent) if sent > 1 else outcome
            first_failed_at, again = first_failed_at or time.monotonic(), outcome.limited
            failed += not outcome.limited
            counts.limited += outcome.limited
            counts.unknown += outcome.unknown
            wait_s = _wait_s(provider, outcome, sent)
            if outcome.limited and time.monotonic() - first_failed_at + wait_s > provider.patience_s:
                wished = f" and asks for {wait_s:,.0f} s of silence" if wait_s else ""
                raise ProviderDown(  # no row is to blame, and all others wait behind this one
                    f"{provider.named} limits the rate{wished}: {sent} attempts of one request came to nothing within "
                    f"{provider.patience_s:,.0f} s ({outcome.reason}). What was answered is kept; start again later, "
                    "or ask for a higher limit."
                )
            if not outcome.limited:
                in_vain(outcome.reason)
            if failed >= at_most or time.monotonic() - first_failed_at + wait_s > provider.patience_s:
                return Nothing(outcome.reason, sent)
            counts.retries += 1
            if not outcome.limited:  # after a 429 the next permit is what is waited for
                await asyncio.sleep(wait_s)
        return None

    async def _attempt(
        self, line: Line, request: Request, body: bytes, bill: Bill, counts: Counts, again: bool
    ) -> Answer | Retry | None:
        """Send once, with a permit that is settled whatever happens. None: the claim was lost before."""
        route = (request.provider, request.model)
        tokens = len(body) / BYTES_A_TOKEN + self._tokens_out.get(route, request.max_tokens)
        permit = await self._permits.take(route, tokens, bill.most_usd, again)
        outcome: Answer | Retry | None = None
        usd, used, unpriced = 0.0, None, False
        try:
            if self.stopping:
                raise asyncio.CancelledError
            if not await self._claiming.sure(request.key):
                return None
            usd, unpriced = bill.most_usd, bill.price is None  # until something is heard it may be billed
            counts.calls += 1
            outcome = await self._send(line, request, body, permit, route)
            usd, unpriced = bill.usd(outcome), bill.price is None and billed(outcome)
            used = self._used(route, outcome)
            return outcome
        except ProviderStopped:
            usd, unpriced = 0.0, False
            raise
        finally:
            self._permits.queue(route).settle(permit, usd, used, unpriced)
            self._permits.tell_soon()

    async def _send(self, line: Line, request: Request, body: bytes, permit: Permit, route: Route) -> Answer | Retry:
        task, queue = asyncio.current_task(), self._permits.queue(route)
        assert task is not None
        self.sending.add(task)
        try:
            outcome, announced = await line.attempt(request, body)
        finally:
            self.sending.discard(task)
        queue.announced(announced)
        if isinstance(outcome, Answer):
            queue.answered(permit)
        elif outcome.limited:
            queue.limited(permit, outcome.after_s)
        return outcome

    def _used(self, route: Route, outcome: Answer | Retry) -> int | None:
        """Tokens that count against the limit; None where the estimate must do."""
        if isinstance(outcome, Retry):
            return 0 if outcome.limited else None
        if outcome.tokens_in is None or outcome.tokens_out is None:
            return None
        mean = self._tokens_out.get(route, outcome.tokens_out)
        self._tokens_out[route] = mean + 0.05 * (outcome.tokens_out - mean)
        return outcome.tokens_in + outcome.tokens_out


def keep(ledger: Ledger, request: Request, answer: Answer, counts: Counts) -> None:
    """Record what was paid for; a refusal is no reply."""
    if answer.finish_reason != "refused":
        ledger.record(request, answer)
        counts.tokens_in += answer.tokens_in or 0
        counts.tokens_out += answer.tokens_out or 0


def _wait_s(provider: Provider, outcome: Retry, sent: int) -> float:
    """What the provider wishes; else exponential, with jitter over its upper half; a 429's rate is the quota's."""
    if outcome.after_s is not None:
        return outcome.after_s
    if outcome.limited:
        return 0.0
    return min(BACKOFF_LIMIT_S, provider.backoff_s * 2.0 ** (sent - 1)) * random.uniform(0.5, 1.0)
