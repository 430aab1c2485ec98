"""The authority and the budget by hand, and the permits that workers get from them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.profile import Profile
from cluster.quota import RunQuota, limits, run_quota
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from serving.budget import Budget, BudgetSpent
from serving.permits import Permits
from serving.prices import Price, Prices
from serving.providers import ProviderStopped, announced_limit
from serving.queues import Permit, Queue
from serving.quota import Asked, Authority, Here
from serving.rates import Limit, Rates, Report, Route, fair_shares

ROUTE: Route = ("provider", "model")
BOTH = frozenset({"a", "b"})


# ---------------------------------------------------------------- dollars


def test_what_is_reserved_and_paid_never_passes_the_cap() -> None:
    budget = Budget(1.0)
    assert budget.reserve("a", 0.6, 0.6, BOTH) == 0.6
    assert budget.reserve("b", 0.6, 0.3, BOTH) == pytest.approx(0.4)  # what is there, for those that fit
    assert budget.reserve("b", 0.1, 0.1, BOTH) == 0.0
    assert budget.spent is None  # a's call may cost less
    budget.settle("a", paid_usd=0.2, freed_usd=0.4)
    assert budget.reserve("b", 0.1, 0.1, BOTH) == pytest.approx(0.1)
    assert (budget.spending.paid_usd, budget.spending.reserved_usd) == (pytest.approx(0.2), pytest.approx(0.5))


def test_it_is_spent_when_nobody_can_give_anything_back() -> None:
    budget = Budget(1.0)
    assert budget.reserve("a", 1.0, 1.0, BOTH) == 1.0
    budget.settle("a", paid_usd=0.95, freed_usd=0.05)
    assert budget.reserve("b", 0.06, 0.06, BOTH) == 0.0
    assert budget.spent is not None
    assert "max_usd = 1: $0.9500 is spent in this run, and the next call could cost $0.0600" in budget.spent
    assert budget.reserve("b", 0.01, 0.01, BOTH) == 0.0  # for good, so that all workers end alike
    assert "no run" not in budget.spent  # the next run begins with nothing paid
    assert budget.spending.next_max_usd == 1


def test_a_cap_that_lets_no_call_through_names_the_least_that_does() -> None:
    budget, least_usd = Budget(0.05), 0.161252
    assert budget.reserve("a", 1.0, least_usd, BOTH) == 0.0
    assert "no run with this cap can make it: 0.1613 is the least that lets it through" in str(budget.spent)
    assert Budget(0.1613).reserve("a", 1.0, least_usd, BOTH) == 0.1613
    assert budget.spending.next_max_usd == 0.3226  # another call may come first, and cost more
    assert Budget().spending.next_max_usd is None


def test_dollars_of_the_dead_stay_spent() -> None:
    budget = Budget(1.0)
    assert budget.reserve("dead", 0.7, 0.7, BOTH) == 0.7
    assert budget.reserve("b", 0.4, 0.4, frozenset({"b"})) == 0.0
    assert "$0.7000 are set aside for calls whose worker died" in str(budget.spent)


def test_without_a_cap_everything_is_granted_and_still_summed() -> None:
    budget = Budget()
    assert budget.reserve("a", 5.0, 1.0, BOTH) == 5.0
    budget.settle("a", 2.0, -2.0)
    assert budget.spending.paid_usd == 2.0
    with pytest.raises(ValueError, match="max_usd = -1"):
        Budget(-1)


# ---------------------------------------------------------------- requests and tokens


def test_fair_shares_are_max_min() -> None:
    assert fair_shares([10, 1, 10], 9) == ([4.0, 1, 4.0], 0.0)
    assert fair_shares([1, 1], 9) == ([1, 1], 7.0)
    assert fair_shares([0, -3, 5], 4) == ([0.0, 0.0, 4.0], 0.0)


def test_permits_accrue_at_the_rate_and_are_shared() -> None:
    """60,000 a minute, paced at 980 a second: 98 in a tenth, half for each of two, and idle time is not saved up."""
    authority = Authority({ROUTE: Limit(60_000)})
    want = Report(ROUTE, want=1000)
    authority.exchange("a", [want], 0.0)
    authority.exchange("b", [want], 0.0)
    got = [authority.exchange(name, [want], 0.1)[0].requests for name in "ab"]
    assert got == [49, 49]
    authority.exchange("a", [Report(ROUTE)], 0.2)
    authority.exchange("b", [Report(ROUTE)], 0.2)
    after_idle = authority.exchange("a", [want], 1.5)[0].requests
    assert after_idle <= 20 + 98  # 20 ms worth was kept, and what b had not fetched when it was given up


def test_permits_of_the_silent_are_not_set_aside() -> None:
    authority = Authority({ROUTE: Limit(60_000)})
    for name in "ab":
        authority.exchange(name, [Report(ROUTE, want=10_000)], 0.0)
    for tenth in range(1, 31):
        granted = authority.exchange("a", [Report(ROUTE, want=10_000)], tenth / 10)[0].requests
    assert granted == 98


def test_a_pause_is_for_everybody() -> None:
    authority = Authority({ROUTE: Limit(60_000)})
    authority.exchange("a", [Report(ROUTE, want=10, limited=((0.1, 1),), retry_after_s=3.0)], 10.0)
    grant = authority.exchange("b", [Report(ROUTE, want=10)], 10.5)[0]
    assert (grant.requests, grant.pause_s) == (0, 2.5)
    assert authority.exchange("b", [Report(ROUTE, want=10)], 13.1)[0].requests > 0


def test_tokens_are_settled() -> None:
    """6,000 a minute are 98 a second. 300 tokens more than estimated take three seconds more."""
    authority = Authority({ROUTE: Limit(None, 6_000)})
    want = Report(ROUTE, want=1, want_tokens=98.0)
    authority.exchange("a", [want], 0.0)
    assert authority.exchange("a", [want], 1.0)[0].tokens == pytest.approx(98.0)
    authority.exchange("a", [Report(ROUTE, want=1, want_tokens=98.0, tokens_over=294.0)], 1.0)
    assert authority.exchange("a", [want], 3.9)[0].tokens == 0.0
    assert authority.exchange("a", [want], 5.0)[0].tokens == pytest.approx(98.0)


def test_the_profile_tells_limits_and_nobody_limits_our_own() -> None:
    profile = Profile.model_validate(
        {
            "providers": {
                "p": {
                    "base_url": "http://localhost/v1",
                    "requests_per_minute": 500,
                    "limits": {"big": {"requests_per_minute": 60, "tokens_per_minute": 1000}},
                },
                "own": {"engine": "some/model"},
            }
        }
    )
    assert limits(profile, ["p", "own", "embedded"]) == {
        ("p", "*"): Limit(500, None),
        ("p", "big"): Limit(60, 1000),
        ("own", "*"): Limit(math.inf),
        ("embedded", "*"): Limit(math.inf),
    }


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "found"),
    [
        ("500", "499", "120ms", 500),  # a bucket of a minute
        ("500", "120", "37s", 500),  # a window of a minute
        ("10000", "9999", "8.64s", None),  # a bucket of a day: 10000 * 8.64 s
        ("14400", "14370", "2m59.56s", None),  # longer than a minute
        ("60", None, None, 60),
        ("many", None, None, None),
    ],
)
def test_limits_that_headers_tell(limit: str, remaining: str | None, reset: str | None, found: float | None) -> None:
    told = {"limit": limit, "remaining": remaining, "reset": reset}
    headers = {f"x-ratelimit-{what}-requests": value for what, value in told.items() if value is not None}
    assert announced_limit(headers) == (None if found is None else Limit(found))
    assert announced_limit({"x-ratelimit-limit-tokens": "30000"}) == Limit(None, 30_000)
    assert announced_limit({}) is None


def test_a_run_with_a_cap_and_without_a_price_is_refused() -> None:
    dialogues = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit()))
    teacher = Teacher(provider="openai", model="a-new-model", turns=("{dialogue}",))
    stage = Stage(RepliesSpec(responder=teacher), {"dialogues": dialogues})
    with pytest.raises(ValueError, match=r'price of openai/a-new-model is unknown.*\[prices\."openai/a-new-model"\]'):
        run_quota([dialogues, stage], Profile(), max_usd=5.0)
    assert run_quota([dialogues, stage], Profile()).spending.paid_usd == 0.0
    assert run_quota([dialogues], Profile(), max_usd=5.0).spending.max_usd == 5.0


# ---------------------------------------------------------------- what the driver sees


def test_a_run_sees_what_its_workers_sent_paid_and_have() -> None:
    """Two workers, two models. Part 0 was made anew after a loss: its rows count once. One worker began again."""
    quota, other = RunQuota(0, {}, Prices()), ("provider", "other")
    end = quota.ask()
    asyncio.run(end.exchange("a", [Report(ROUTE, sent=3, usd_paid=0.5), Report(other, sent=2, unpriced=2)]))
    asyncio.run(end.exchange("b", [Report(ROUTE, sent=4, usd_paid=0.25)]))
    for rows in ({("k", 0): 7, ("k", 1): 2}, {("k", 0): 3}, {("k", 1): 5, ("j", 0): 1}):
        end.tell(rows, {}, "a")
    for pool in ("x", "x", "x", "y"):
        end.began("provider model", pool, 2)
    seen = quota.look()
    assert seen.asked == {ROUTE: Asked(7, 0.75, 0), other: Asked(2, 0.0, 2)}
    assert (seen.spending.paid_usd, seen.spending.unpriced) == (0.75, 2)
    assert (seen.rows, seen.restarts) == ({"k": 12, "j": 1}, {"provider model": 1})
    assert seen.away == {}
    end.tell({}, {"provider": "it is away"}, "b")
    assert quota.look().away == {"provider": "it is away"}
    end.tell({}, {}, "b")
    assert quota.look().away == {}


def test_a_model_is_free_where_nobody_sends_a_bill_and_not_where_the_price_is_unknown() -> None:
    prices = Prices({"dear": Price(usd_per_million_in=1, usd_per_million_out=1, as_of="2026-01-01")})
    quota = RunQuota(0, {}, prices)
    assert [quota.is_free(*route) for route in (("embedded", "rule"), ("x", "dear"), ("x", "new"))] == [
        True,
        False,
        False,
    ]


# ---------------------------------------------------------------- permits


def in_loop(work: Callable[[], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        return await work()

    return asyncio.run(inside())


def test_a_call_that_does_not_fit_waits_for_one_that_costs_less() -> None:
    async def work() -> list[str]:
        done, here = list[str](), Here(Authority(otherwise=Limit(math.inf), max_usd=1.0))
        async with Permits(here) as one, Permits(here) as other:
            first = await one.take(ROUTE, 10, 0.7)

            async def second() -> None:
                permit = await other.take(ROUTE, 10, 0.6)
                done.append("second")
                other.queue(ROUTE).settle(permit, 0.6)

            waiting = asyncio.create_task(second())
            await asyncio.sleep(0.3)
            done.append("first")
            one.queue(ROUTE).settle(first, 0.3)
            one.tell_soon()
            await waiting
        assert here.authority.budget.spending.paid_usd == pytest.approx(0.9)
        assert here.authority.budget.spending.reserved_usd == 0.0
        return done

    assert in_loop(work) == ["first", "second"]


def test_nobody_waits_for_money_that_will_not_come() -> None:
    """Two workers that each hold too little give it back; then the cap is reached for both, and what waits is told."""

    async def work() -> None:
        here = Here(Authority(otherwise=Limit(math.inf), max_usd=1.0))
        async with Permits(here) as one, Permits(here) as other:
            for permits in (one, other):
                permits.queue(ROUTE).settle(await permits.take(ROUTE, 10, 0.45), 0.45)
                permits.tell_soon()
            takes = [asyncio.create_task(p.take(ROUTE, 10, 0.3)) for p in (one, other) for _ in range(3)]
            outcomes = await asyncio.wait_for(asyncio.gather(*takes, return_exceptions=True), 5)
            assert [type(outcome) for outcome in outcomes] == [BudgetSpent] * 6
            with pytest.raises(BudgetSpent, match=r"\$0.9000 is spent"):
                await one.take(ROUTE, 10, 0.01)

    in_loop(work)


def test_who_is_cancelled_gives_back() -> None:
    async def work() -> None:
        here = Here(Authority(otherwise=Limit(math.inf), max_usd=1.0))
        async with Permits(here) as permits:
            await permits.take(ROUTE, 10, 0.8)
            waiting = asyncio.create_task(permits.take(ROUTE, 10, 0.8))
            await asyncio.sleep(0.15)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert here.authority.budget.spending.reserved_usd == pytest.approx(0.8)  # of the call that was never settled

    in_loop(work)


def test_a_request_that_needs_more_than_a_minute_allows_is_refused_at_once_and_alone() -> None:
    async def work() -> None:
        limit = Limit(math.inf, 600.0)
        async with Permits(Here(Authority({ROUTE: limit}))) as permits:
            takes = [asyncio.create_task(permits.take(ROUTE, tokens, 0.0)) for tokens in (4_000.2, 5)]
            large, small = await asyncio.wait_for(asyncio.gather(*takes, return_exceptions=True), 5)
            assert isinstance(large, ProviderStopped)
            assert str(large).startswith(
                "[providers.provider] tokens_per_minute = 600 for model 'model': one request needs about 4,001 tokens"
            )
            assert isinstance(small, Permit)
            permits.queue(ROUTE).settle(small, 0.0)

    in_loop(work)


def test_a_request_of_exactly_a_minutes_tokens_is_not_refused() -> None:
    authority = Authority({(ROUTE[0], "*"): Limit(math.inf, 600.0)}, max_usd=1.0)
    (grant,) = authority.exchange("a", [Report(ROUTE, 1, 600.0, usd_want=0.1, usd_least=0.1)], now=0.0)
    assert (grant.tokens_per_minute, grant.usd) == (600.0, 0.1)

    async def work() -> None:
        queue = Queue(ROUTE, False)
        permits = [Permit(600.0, 0.0), Permit(600.5, 0.0)]
        for permit in permits:
            queue.put(permit, again=False)
        queue.accept(grant)
        fits, large = (permit.future for permit in permits)
        assert fits is not None
        assert large is not None
        assert not fits.done()
        assert isinstance(large.exception(), ProviderStopped)

    in_loop(work)


def test_a_limit_that_only_the_provider_told_refuses_nothing() -> None:
    authority = Authority()
    authority.exchange("a", [Report(ROUTE, 1, 9.0, announced=Limit(None, 5.0))], now=0.0)
    (grant,) = authority.exchange("a", [Report(ROUTE, 1, 9.0)], now=1.0)
    assert grant.tokens_per_minute == math.inf


def test_an_authority_that_is_gone_fails_who_waits() -> None:
    class Gone(Here):
        async def exchange(self, worker: str, reports: Any) -> Any:
            raise OSError("the quota is gone")

    async def work() -> None:
        async with Permits(Gone()) as permits:
            for _ in range(2):
                with pytest.raises(OSError, match="the quota is gone"):
                    await permits.take(ROUTE, 10, 0.0)

    in_loop(work)


def test_of_several_limits_that_are_told_the_lowest_holds() -> None:
    rates = Rates()
    for rpm, tpm in ((None, None), (6_000, None), (60_000, 600), (12_000, 6_000)):
        rates.tell(ROUTE, Limit(rpm, tpm), 0.0)
    assert rates.per_s() == {ROUTE: pytest.approx(0.98 * 100)}
    (grant,) = rates.exchange("a", [Report(ROUTE, want=1, want_tokens=1e6)], 0.0)
    assert grant.tokens_per_minute == 600
    (grant,) = rates.exchange("a", [Report(ROUTE, want=1, want_tokens=1e6)], 1.0)
    assert grant.tokens == pytest.approx(0.98 * 600 / 60)
