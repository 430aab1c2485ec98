"""What can be counted without a judge. None of it measures empathy, and the report says so.

PER_REPLY: text -> number, reported as a mean over replies with a clustered interval.
CORPUS: all replies -> number, without an interval (it is no mean of rows).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from empathy.metrics.distinct import distinct_adjusted, distinct_corpus, distinct_of
from empathy.metrics.phrases import has_question, has_stock_phrase
from empathy.metrics.self_bleu import self_bleu
from empathy.metrics.words import words

PER_REPLY: Mapping[str, Callable[[str], float]] = {
    "words": words,
    "distinct_1_mean": partial(distinct_of, n=1),
    "distinct_2_mean": partial(distinct_of, n=2),
    "question_share": has_question,
    "template_share": has_stock_phrase,
}
CORPUS: Mapping[str, Callable[[Sequence[str]], float | None]] = {
    "distinct_1_corpus": partial(distinct_corpus, n=1),
    "distinct_2_corpus": partial(distinct_corpus, n=2),
    "distinct_1_adjusted": partial(distinct_adjusted, n=1),
    "distinct_2_adjusted": partial(distinct_adjusted, n=2),
    "self_bleu": self_bleu,
}
