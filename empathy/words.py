"""Numbers in sentences."""

from __future__ import annotations

import math


def counted(n: int, noun: str) -> str:
    """ "1 stage", "2,000 stages": for nouns that take an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def dollars(usd: float) -> str:
    """ "1,204.50", and two digits of what is less than a cent: "0.000012" is not nothing."""
    digits = 2 if usd >= 0.01 or usd <= 0 else 1 - math.floor(math.log10(usd))
    return f"{usd:,.{digits}f}"
