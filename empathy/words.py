"""Numbers and names in sentences."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def counted(n: int, noun: str) -> str:
    """ "1 stage", "2,000 stages": for nouns that take an s."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def dollars(usd: float) -> str:
    """ "1,204.50", and two digits of what is less than a cent: "0.000012" is not nothing."""
    digits = 2 if usd >= 0.01 or usd <= 0 else 1 - math.floor(math.log10(usd))
    return f"{usd:,.{digits}f}"


def meant(name: str, there: Iterable[str]) -> str:
    """The name that a misspelt one is nearest to, case aside: ", did you mean 'direct'?"; "" where none is near."""
    names = {known.casefold(): known for known in there}
    close = difflib.get_close_matches(name.casefold(), names, 1)
    return f", did you mean {names[close[0]]!r}?" if close else ""


def instead(name: str, there: Iterable[str]) -> str:
    """How "unknown method 'dircet'" goes on: ", did you mean 'direct'? There are direct, ..."."""
    names = list(there)
    hint, listed = meant(name, names), ", ".join(names)
    return f"{hint} There are {listed}" if hint else f"; there are {listed}"
