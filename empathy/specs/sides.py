"""Which sides of the split a stage is about."""

from __future__ import annotations

from collections.abc import Mapping

from empathy.records import Split

Sides = Split | tuple[Split, ...] | None
"""One side, several, or (None) all."""


def named(sides: Sides) -> tuple[Split, ...]:
    """The sides that are named; () for all."""
    return (sides,) if isinstance(sides, str) else sides or ()


def is_on(sides: Sides, side: str) -> bool:
    """Whether dialogues of `side` are among them."""
    return not sides or side in named(sides)


def rows_on(sides: Sides, rows: int, counts: Mapping[str, int]) -> int:
    """How many of the `rows` dialogues of a part are; `counts` has them by side."""
    return sum(counts.get(side, 0) for side in named(sides)) if sides else rows
