"""What was spent, by experiment, model and day, and what sharing saved, at today's prices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster import profile as profiles
from cluster.profile import Profile
from empathy.store import Artifact, CorruptError, Store
from empathy.words import counted
from serving.journals import FOLDER as JOURNALS
from serving.prices import Prices
from serving.spending import UNKNOWN, spending
from serving.uses import uses

COUNTED = (
    "  counted, at the whole price: of stages that others made, the requests of the runs that finished them (not what",
    "  their makers had in the ledger already, say from a run cut off); of its own stages, the replies others paid for",
)
COUNTED_AMONG_ARMS = (
    "  counted, at the whole price: a finished paid stage that k arms of the experiment need, k - 1 times; each arm",
    "  would have paid for it alone",
)
"""What the tables of sharing hold: the lines below them."""


@dataclass(frozen=True)
class Sum:
    """`unpriced` requests are of models whose price nobody told: they are in no dollars. `uncounted` ones came without
    token counts: they are in no tokens."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    unpriced: int = 0
    uncounted: int = 0

    def __add__(self, other: Sum) -> Sum:
        mine, theirs = vars(self), vars(other)
        return Sum(**{name: mine[name] + theirs[name] for name in mine})

    def __mul__(self, times: int) -> Sum:
        return Sum(**{name: value * times for name, value in vars(self).items()})


@dataclass(frozen=True)
class Paid:
    """A group of replies that are alike. `share` of the list price was paid for each (batches cost less)."""

    experiment: str
    provider: str
    model: str
    day: str
    share: float
    sum: Sum


def ledger(on: str | None, store_url: str | None) -> int:
    """Print the tables."""
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    store.files.look()
    print("\n".join(_lines(store, profile)))
    return 0


def _lines(store: Store, profile: Profile) -> Iterator[str]:
    bad: Counter[str] = Counter()
    found = spending(store.files, lambda writer, lines: bad.update({writer: lines}))
    paid = [_paid(row, profile.price_list) for row in found.iter_rows(named=True)]
    for writer, lines in bad.items():
        where = f"{store.url}/{JOURNALS}/{writer}"
        yield f"left out: {counted(lines, 'damaged line')} of {where}: what is still needed is asked for again"
    if not paid:
        yield f"no paid replies in {store.url}"
        return
    total = sum((p.sum for p in paid), Sum())
    yield f"{total.requests:,} replies in {store.url}, in US dollars at the prices below, whatever was paid then"
    damaged: list[CorruptError] = []
    saved = savings(store, profile.price_list, damaged.append)
    yield from ("", *_table("experiment", paid, lambda p: p.experiment))
    yield from ("", *_table("model", paid, lambda p: f"{p.provider} {p.model}"))
    yield from ("", *_table("day (UTC)", paid, lambda p: p.day))
    yield from ("", *_saved(saved))
    yield from (f"left out of what sharing saved: {error}" for error in damaged)
    yield from ("", *_prices(paid, profile.price_list))


def _paid(row: dict[str, Any], prices: Prices) -> Paid:
    price = prices.of(row["provider"], row["model"])
    usd = row["price"] * price.usd(row["tokens_in"], row["tokens_out"]) if price else 0.0
    unpriced = 0 if price else row["requests"]
    sums = Sum(row["requests"], row["tokens_in"], row["tokens_out"], usd, unpriced, row["uncounted"])
    return Paid(row["experiment"], row["provider"], row["model"], str(row["day"]), row["price"], sums)


def _table(title: str, paid: list[Paid], by: Callable[[Paid], str]) -> Iterator[str]:
    sums: dict[str, Sum] = defaultdict(Sum)
    for p in paid:
        sums[by(p)] += p.sum
    yield _head(title)
    yield from (_row(name, sums[name]) for name in sorted(sums))
    if len(sums) > 1:
        yield _row("all", sum(sums.values(), Sum()))


def _head(title: str) -> str:
    return f"{title:<40}{'requests':>11}{'tokens in':>14}{'tokens out':>14}{'US dollars':>13}"


def _row(name: str, s: Sum) -> str:
    usd = f"{s.usd:,.2f}" if not s.unpriced else "unknown" if s.unpriced == s.requests else f">= {s.usd:,.2f}"
    more = f"  {s.uncounted:,} without token counts" if s.uncounted else ""
    return f"{name:<40}{s.requests:>11,}{s.tokens_in:>14,}{s.tokens_out:>14,}{usd:>13}{more}"


def _prices(paid: list[Paid], prices: Prices) -> Iterator[str]:
    yield "prices, in US dollars a million tokens"
    for provider, model in sorted({(p.provider, p.model) for p in paid}):
        price = prices.of(provider, model)
        if price is None:
            said = f'unknown: add [prices."{model}"] to the profile'
        elif price.as_of == "always":
            said = "no bill: our own"
        else:
            said = f"{price.usd_per_million_in:g} in, {price.usd_per_million_out:g} out, as of {price.as_of}"
            said += "".join(_discounts([p for p in paid if (p.provider, p.model) == (provider, model)]))
        yield f"  {provider + ' ' + model:<38}{said}"


def _discounts(paid: list[Paid]) -> Iterator[str]:
    """ "; times 0.5 for 110 of 120 requests (batch API)", for each share of the price that is not the whole."""
    requests: Counter[float] = Counter()
    for p in paid:
        requests[p.share] += p.sum.requests
    for share in sorted(requests.keys() - {1.0}):
        yield f"; times {share:g} for {requests[share]:,} of {counted(requests.total(), 'request')} (batch API)"


# ---------------------------------------------------------------- sharing


@dataclass(frozen=True)
class Savings:
    """By experiment: `others` what other experiments had paid for, `arms` what its arms share among themselves."""

    others: dict[str, Sum]
    arms: dict[str, Sum]


def savings(store: Store, prices: Prices, damaged: Callable[[CorruptError], None] | None = None) -> Savings:
    """What experiments did not have to pay, in the stages that are finished: at least this.

    From others, in two ways: a stage that another experiment had made is used whole; and in making its own stages,
    single replies came from the ledger that another had bought. What nobody's name stands on is left out. Of a stage
    used whole counts what its parts' manifests tell: the requests of the runs that finished the parts. Answers that the
    maker already had in the ledger, from a run that was cut off or from another of its stages, are not told apart
    there, and count nothing. Among its arms: a stage that k of them need would have been paid k times if each were run
    alone, so k - 1 times more.
    """
    others, arms = defaultdict[str, Sum](Sum), defaultdict[str, Sum](Sum)
    users = uses(store.files, damaged)
    for artifact in (a for kind in ("replies", "verdicts") for a in store.artifacts(kind, damaged)):
        maker, counts = artifact.manifest["made"].get("experiment") or UNKNOWN, artifact.counts
        asked = _asked(artifact)
        if asked is None:
            continue
        shared = Sum(counts.get("shared", 0), counts.get("shared_tokens_in", 0), counts.get("shared_tokens_out", 0))
        answered = counts.get("calls", 0) - counts.get("retries", 0)
        whole = _priced(shared + Sum(answered, counts.get("tokens_in", 0), counts.get("tokens_out", 0)), *asked, prices)
        if maker != UNKNOWN:
            others[maker] += _priced(shared, *asked, prices)
        for user, stages in users.items():
            many = stages.get(f"{artifact.kind}/{artifact.key}", 0)
            if many and maker not in (user, UNKNOWN):
                others[user] += whole
            if many > 1:
                arms[user] += whole * (many - 1)
    return Savings(*({name: s for name, s in sorted(found.items()) if s.requests} for found in (others, arms)))


def _asked(artifact: Artifact) -> tuple[str, str] | None:
    spec = artifact.identity["spec"]
    who = spec.get("judge") or spec.get("responder")
    return (who["provider"], who["model"]) if "provider" in who else None


def _priced(s: Sum, provider: str, model: str, prices: Prices) -> Sum:
    price = prices.of(provider, model)
    if price is None:
        return s + Sum(unpriced=s.requests)
    return s + Sum(usd=price.usd(s.tokens_in, s.tokens_out))


def _saved(saved: Savings) -> Iterator[str]:
    if saved.arms:
        yield _head("saved by sharing among arms (at least)")
        yield from (_row(name, s) for name, s in saved.arms.items())
        yield from COUNTED_AMONG_ARMS
    else:
        yield "sharing among arms: no run of several arms has noted what they share"
    yield ""
    if saved.others:
        yield _head("saved by sharing (at least)")
        yield from (_row(name, s) for name, s in saved.others.items())
        yield from COUNTED
    else:
        yield "sharing: no experiment has used yet what another one paid for"
