"""Requests, tokens and dollars of the stages that ask a teacher or a judge, low and high."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.profile import Profile
from empathy.specs import RepliesSpec, Rubric, Teacher, VerdictsSpec
from empathy.stages import Stage
from jobs.estimate import CHARS_PER_TOKEN, MESSAGE_TOKENS, TOKENS_PER_WORD, tokens
from jobs.estimate.held import Held
from jobs.estimate.view import View, asked_model
from serving.prices import EMBEDDED, Price

JUDGE_TOKENS = {"robust": 120.0, "paper": 12.0, "rubric": 80.0}
"""Tokens of a verdict where none was measured: notes and five fields of JSON, one line, notes and three scores."""
_PLACEHOLDER = re.compile(r"\{\w+\}|\$\{?\w+\}?")


@dataclass(frozen=True)
class Amount:
    """What is sent and paid for."""

    requests: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        )

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.requests * factor, self.tokens_in * factor, self.tokens_out * factor)


@dataclass(frozen=True)
class Bill:
    """What one model is asked. `held` requests are in the ledger already and not in `low` and `high`; `unknown` stages
    could not be counted; `unlooked` stages were not looked up in the ledger."""

    provider: str
    model: str
    price: Price | None
    share: float
    """Of the price that is paid: less than 1 through a batch API."""
    low: Amount
    high: Amount
    held: int = 0
    unknown: int = 0
    unlooked: int = 0

    @property
    def free(self) -> bool:
        """Whether the model sends no bill, however much it is asked."""
        return self.price is not None and self.price.usd(1, 1) == 0

    def usd(self, amount: Amount) -> float | None:
        """Dollars of what is known; None where that is nothing, and without a price."""
        if self.free or not (amount.requests or self.unknown):
            return 0.0
        if self.price is None or not amount.requests:
            return None
        return self.share * self.price.usd(amount.tokens_in, amount.tokens_out)


def bills(to_make: Iterable[Stage], view: View, held: Held, profile: Profile) -> list[Bill]:
    """One a (provider, model), in the order of first use. Raises ValueError for a provider that nobody knows."""
    by_model: dict[tuple[str, str], list[Stage]] = defaultdict(list)
    for stage in to_make:
        if model := asked_model(stage):
            by_model[model].append(stage)
    return [_bill(*model, stages, view, held, profile) for model, stages in by_model.items()]


def _bill(provider: str, model: str, stages: list[Stage], view: View, held: Held, profile: Profile) -> Bill:
    low, high, there, unknown, unlooked = Amount(), Amount(), 0, 0, 0
    for stage in stages:
        rows = view.rows(stage)
        if rows is None:
            unknown += 1
            continue
        found = held.requests(stage, view)
        unlooked += found is None
        there += found or 0
        one_low, one_high = a_row(stage, view)
        left = max(0.0, rows - (found or 0) / one_low.requests)
        low, high = low + one_low * left, high + one_high * left
    share = share_of_price(provider, profile)
    return Bill(provider, model, profile.price_list.of(provider, model), share, low, high, there, unknown, unlooked)


def share_of_price(provider: str, profile: Profile) -> float:
    """What is paid of the list price: less than 1 through a batch API. Raises ValueError for a provider that nobody
    knows."""
    place = None if provider == EMBEDDED else profile.provider(provider)
    return place.batch_price if place and place.batch else 1.0


def a_row(stage: Stage, view: View) -> tuple[Amount, Amount]:
    """What one row (a reply, a verdict) takes: as expected, and at most, which is never less."""
    low, high = _verdict(stage, view) if isinstance(stage.spec, VerdictsSpec) else _reply(stage, view)
    assert low.requests <= high.requests
    assert low.tokens_in <= high.tokens_in
    assert low.tokens_out <= high.tokens_out
    return low, high


def _reply(stage: Stage, view: View) -> Iterator[Amount]:
    """A chat of one or several turns; each turn is shown all turns and answers before it. At most: the answers, and
    another's that is improved on, at their limits (which no expected answer is over)."""
    spec = stage.spec
    assert isinstance(spec, RepliesSpec)
    assert isinstance(spec.responder, Teacher)
    teacher, corpus = spec.responder, view.corpus(stage)
    system = _text(teacher.system) + MESSAGE_TOKENS if teacher.system else 0.0
    for at_most in (False, True):
        filled = {
            "{dialogue}": tokens(corpus.dialogue_chars),
            "{reply}": view.reply_tokens(stage.inputs.get("improves"), corpus, at_most),
        }
        turns = [
            _text(t) + sum(t.count(name) * size for name, size in filled.items()) + MESSAGE_TOKENS
            for t in teacher.turns
        ]
        answer = view.reply_tokens(stage, corpus, at_most)
        shown = [system + sum(turns[: k + 1]) + k * (answer + MESSAGE_TOKENS) for k in range(len(turns))]
        yield Amount(len(turns), sum(shown), len(turns) * answer)


def _verdict(stage: Stage, view: View) -> Iterator[Amount]:
    """One call about two replies (a rubric: one), or as many attempts as are allowed, each answered at full length
    about replies at the cap."""
    spec = stage.spec
    assert isinstance(spec, VerdictsSpec)
    judge, corpus = spec.judge, view.corpus(stage)
    shown = _text(judge.template) + tokens(corpus.dialogue_chars) + 2 * MESSAGE_TOKENS
    cap = spec.cap_words * TOKENS_PER_WORD
    compared = [stage.inputs[side] for side in ("a", "b") if side in stage.inputs]
    replies = sum(min(cap, view.reply_tokens(side, corpus)) for side in compared)
    mode = "rubric" if isinstance(judge, Rubric) else judge.mode
    expected = view.answer_tokens(stage, JUDGE_TOKENS[mode], judge.max_tokens)
    yield Amount(1, shown + replies, expected)
    attempts = 1 if mode == "paper" else judge.attempts
    yield Amount(1, shown + len(compared) * cap, judge.max_tokens) * attempts


def _text(template: str) -> float:
    """Tokens of a template's own words."""
    return len(_PLACEHOLDER.sub("", template)) / CHARS_PER_TOKEN
