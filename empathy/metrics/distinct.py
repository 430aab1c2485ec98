"""Distinct-n (Li et al. 2016): the share of n-grams that are different, in three variants that are never mixed."""

from __future__ import annotations

from collections.abc import Sequence

from empathy.metrics.words import tokens

VOCABULARY = 30_522
"""V of the adjusted variant: BERT's vocabulary, as in Liu et al. 2022."""


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_of(text: str, n: int) -> float:
    """Different n-grams / n-grams of one reply; NaN where it has none. Its mean over replies is `distinct_n_mean`."""
    grams = ngrams(tokens(text), n)
    return len(set(grams)) / len(grams) if grams else float("nan")


def distinct_corpus(replies: Sequence[str], n: int) -> float | None:
    """Different n-grams / n-grams over all replies together. Falls with the number and length of replies."""
    grams = [g for text in replies for g in ngrams(tokens(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_adjusted(replies: Sequence[str], n: int) -> float | None:
    """Different n-grams / the number expected if all C n-grams were drawn evenly from V: V * (1 - ((V - 1) / V)^C).

    Expectation-adjusted distinct (Liu et al. 2022), which long replies do not lower as they lower the corpus variant.
    """
    grams = [g for text in replies for g in ngrams(tokens(text), n)]
    expected = VOCABULARY * (1 - ((VOCABULARY - 1) / VOCABULARY) ** len(grams))
    return len(set(grams)) / expected if grams else None
