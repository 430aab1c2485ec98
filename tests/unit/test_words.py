"""Numbers and names in sentences."""

from __future__ import annotations

import pytest

from empathy.words import dollars, instead
from serving.budget import Budget


@pytest.mark.parametrize(
    ("usd", "said"),
    [
        (0, "0.00"),
        (1204.5, "1,204.50"),
        (0.01, "0.01"),
        (0.00999, "0.0100"),
        (0.001, "0.0010"),
        (0.0000123, "0.000012"),
        (-0.5, "-0.50"),
    ],
)
def test_an_amount_that_is_not_nothing_is_never_said_to_be_nought(usd: float, said: str) -> None:
    assert dollars(usd) == said


def test_a_tiny_cap_is_said_as_it_is() -> None:
    assert str(Budget(0.00001).spending) == "$0.00 of 0.000010"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dircet", ", did you mean 'direct'? There are direct, Human"),
        ("HUMAN", ", did you mean 'Human'? There are direct, Human"),
        ("x", "; there are direct, Human"),
    ],
)
def test_instead_of_a_misspelt_name_the_nearest_is_offered(name: str, said: str) -> None:
    assert instead(name, ["direct", "Human"]) == said
