"""What tokens cost: listed, told by the profile, free, or unknown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import profile as profiles
from cluster.profile import KNOWN_PROVIDERS
from serving.prices import FREE, Prices, listed

OWN = """
[prices."gpt-4o"]
usd_per_million_in  = 1
usd_per_million_out = 2
as_of               = "2026-01-31"

[prices."openai/gpt-4.1"]
usd_per_million_in  = 3
usd_per_million_out = 4
as_of               = "2026-02-28"

[providers.ours]
engine = "some/model"
"""


def test_a_million_tokens_each_way() -> None:
    price = Prices().of("openai", "gpt-4o")
    assert price is not None
    assert price.usd(2_000_000, 100_000) == pytest.approx(2 * 2.5 + 0.1 * 10)


def test_unknown_is_none_and_never_zero() -> None:
    assert Prices().of("openai", "no-such-model") is None
    assert Prices().of("somebody-else", "gpt-4o") is None, "another provider's price is another price"


def test_the_profile_wins_over_the_list_and_own_engines_are_free(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(OWN)
    prices = profiles.load(str(tmp_path / "p.toml")).price_list
    told = [prices.of(*name) for name in (("openai", "gpt-4o"), ("openai", "gpt-4.1"), ("openrouter", "gpt-4.1"))]
    assert [p and (p.usd_per_million_in, p.as_of) for p in told] == [(1, "2026-01-31"), (3, "2026-02-28"), None]
    assert prices.of("ours", "anything") == prices.of("embedded", "rule-judge") == FREE


def test_a_price_without_its_date_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[prices."m"]\nusd_per_million_in = 1\nusd_per_million_out = 2\n')
    with pytest.raises(ValueError, match=r"prices\.m\.as_of: is missing"):
        profiles.load(str(tmp_path / "p.toml"))


def test_the_list_names_providers_that_exist_and_dates() -> None:
    assert set(listed()) <= set(KNOWN_PROVIDERS)
    prices = [price for models in listed().values() for price in models.values()]
    assert prices
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", p.as_of) and p.usd_per_million_in > 0 for p in prices)
