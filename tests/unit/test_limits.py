"""The fake providers' limits, by hand."""

from __future__ import annotations

import pytest

from serving.limits import Limiter, Limits


def test_a_bucket_fills_at_its_rate() -> None:
    limiter = Limiter(Limits(per_s=10, burst_s=0.2))  # holds two
    assert [limiter.wait_s(5.0) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]
    assert limiter.wait_s(5.05) == pytest.approx(0.05)
    assert limiter.wait_s(5.11) == 0.0
    assert [limiter.wait_s(9.0) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]  # no more than two are saved up
    assert (limiter.accepted, limiter.limited) == (5, 3)


def test_windows_begin_at_whole_ones() -> None:
    limiter = Limiter(Limits(per_s=2, window_s=1.0))
    assert [limiter.wait_s(at) for at in (5.5, 5.6, 5.75, 6.0)] == [0.0, 0.0, 0.25, 0.0]


def test_limits_change_on_time_and_are_told() -> None:
    limiter = Limiter(Limits(per_s=100, changes=((2.0, 50),), tells=True, tells_when=True))
    limiter.wait_s(10.0)
    assert limiter.headers(0.0) == {
        "x-ratelimit-limit-requests": "6000",
        "x-ratelimit-remaining-requests": "5999",
        "x-ratelimit-reset-requests": "10ms",
    }
    limiter.wait_s(12.0)
    assert limiter.headers(0.3)["x-ratelimit-limit-requests"] == "3000"
    assert limiter.headers(0.3)["Retry-After"] == "1"
    assert Limiter(Limits()).wait_s(0.0) == 0.0  # no limit
