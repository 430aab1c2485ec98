"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """ "1 stage", "2,000 stages": for nouns that take an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
