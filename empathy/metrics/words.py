"""Length in words."""

from __future__ import annotations

import re


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers; apostrophes stay inside words, all other punctuation goes."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def words(text: str) -> float:
    """Whitespace-separated words, as the word budgets of prompts and of judging count them."""
    return float(len(text.split()))
