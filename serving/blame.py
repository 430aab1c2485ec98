"""A request came to nothing: is the provider away, or is it this request?

Nobody has refused it, so it is not simply given up. The provider is asked something else, for as long as it may take:

    nothing answered within `patience_s`    the provider is away: ProviderDown, and the next run asks for the row again
    answered after a while                  it was away: the row's attempts do not count, it is sent again
    answered at once                        it was there: the row is sent again, and the second time it is to blame

A row that is to blame is given up as refused, with its reason. It would hold up its experiment for ever.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import orjson

from empathy.records import Turn
from empathy.requests import Answer, Request
from serving.calls import Calls, Counts, Nothing, keep
from serving.claiming import Claiming
from serving.ledger import Ledger
from serving.lines import Line
from serving.providers import ProviderDown

QUESTION = Turn("user", "Describe an ordinary morning in a few sentences.")
"""It is asked for as many tokens as the row: a provider may have time for a word and none for a reply."""
TO_BLAME = 2
"""So often a row came to nothing and something else was answered right after it."""
ROUNDS = 6
"""So often a row's attempts are made at most, at a provider that comes and goes."""


class Blame:
    """Of one client: `calls`, `claiming` and `ledger` are its own."""

    def __init__(self, calls: Calls, claiming: Claiming, ledger: Ledger):
        self._calls, self._claiming, self._ledger = calls, claiming, ledger

    async def answer(self, line: Line, request: Request, body: bytes, counts: Counts) -> tuple[Answer, bool] | None:
        """(what came of the request, whether it was given up); None: the claim was lost (we were taken for dead).

        Raises ProviderDown when the provider answers nothing at all.
        """
        there, attempts, reason = 0, 0, ""
        for number in range(ROUNDS):
            counts.retries += number > 0
            heard = await self._calls.persist(line, request, body, counts)
            if heard is None:
                return None
            attempts += heard.attempts
            if isinstance(heard, Answer):
                return replace(heard, attempts=attempts), False
            reason = heard.reason
            there += await self._answers_others(line, request, heard, counts)
            if there == TO_BLAME:
                refused = f"no answer after {attempts} attempts, while others were answered: {reason}"
                return Answer("", "refused", refused=refused, attempts=attempts), True
        raise ProviderDown(
            f"{line.provider.named} comes and goes: {attempts} attempts of one request came to nothing "
            f"({reason}). What was answered is kept; start again later."
        )

    async def _answers_others(self, line: Line, request: Request, lost: Nothing, counts: Counts) -> bool:
        """Whether the model answers others at once; False when it had been away. Requests that are lost together hear
        it together."""
        model, lost_at = request.model, time.monotonic()
        line.lost[model] += 1
        try:
            async with line.listening:
                if line.heard.get(model, (-math.inf, False))[0] < lost_at:
                    at_once = await self._question(line, request, lost, counts)
                    line.heard[model] = time.monotonic(), at_once
                return line.heard[model][1]
        finally:
            line.lost[model] -= 1

    async def _question(self, line: Line, request: Request, lost: Nothing, counts: Counts) -> bool:
        """Ask until it is answered; whether that was at the first attempt. A provider that has not answered anything
        yet (its base_url may be wrong) is not waited for."""
        asked = replace(request, messages=(QUESTION,), json_reply=False, sample=random.getrandbits(40))
        attempts = math.inf if request.model in line.answered else 1

        def in_vain(reason: str) -> None:
            line.away[request.model] = reason

        await self._claiming.ours(asked.key)
        try:
            heard = await self._calls.persist(line, asked, orjson.dumps(asked.body), counts, attempts, in_vain)
            if isinstance(heard, Answer):  # it was paid for: the ledger tells the spending
                keep(self._ledger, asked, heard, counts)
        finally:
            line.away.pop(request.model, None)
            self._claiming.done(asked.key)
        if isinstance(heard, Nothing):
            n = line.lost[request.model]
            raise ProviderDown(
                f"{line.provider.named} is away: {n:,} {'request has' if n == 1 else 'requests have'} no reply (after "
                f"{lost.attempts} attempts: {lost.reason}), and {heard.attempts} "
                f"{'attempt' if heard.attempts == 1 else 'attempts'} to ask anything else came to nothing too. What "
                "was answered is kept; start again when it is back."
            )
        return heard is not None and heard.attempts == 1
