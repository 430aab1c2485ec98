"""Habits of a reply: questions, and the phrases that fit every situation."""

from __future__ import annotations

import re

STOCK_PHRASES = (
    r"i'?m (?:so |really |very )?sorry to hear",
    r"that must (?:be|have been|feel) (?:so |really |very |incredibly )?(?:hard|difficult|tough)",
    r"have you considered (?:joining|talking|seeking|seeing|speaking|reaching)",
    r"(?:it's|it is) (?:completely |totally |perfectly )?(?:understandable|normal|okay|natural) to feel",
    r"remember,? (?:that )?you(?:'re| are) not alone",
    r"i'?m here (?:for you|to (?:listen|help|support))",
    r"take (?:things )?one (?:day|step) at a time",
    r"as an ai\b",
)
_STOCK = re.compile("|".join(STOCK_PHRASES))


def has_question(text: str) -> float:
    """1 when the reply asks something (holds a question mark)."""
    return float("?" in text or "？" in text)


def has_stock_phrase(text: str) -> float:
    """1 when the reply holds one of STOCK_PHRASES."""
    return float(bool(_STOCK.search(text.lower().replace("’", "'"))))
