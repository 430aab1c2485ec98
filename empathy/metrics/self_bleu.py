"""Self-BLEU (Zhu et al. 2018): how much the replies of one arm resemble each other."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from empathy.metrics.distinct import ngrams
from empathy.metrics.words import tokens

ORDER = 4


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """The two highest counts of each n-gram over replies: from them follows the highest among all but one."""
    highest: dict[tuple[str, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for counter in counts:
        for gram, count in counter.items():
            first, second = highest[gram]
            highest[gram] = (count, first) if count > first else (first, max(second, count))
    return highest


def _matches(counts: Sequence[Counter[tuple[str, ...]]]) -> list[int]:
    """For each reply its n-grams found in another reply, clipped to the highest count in any one of those."""
    highest = _two_highest(counts)
    return [
        sum(min(c, highest[g][1] if c == highest[g][0] else highest[g][0]) for g, c in counter.items())
        for counter in counts
    ]


def self_bleu(replies: Sequence[str]) -> float | None:
    """Mean over replies of BLEU-4 (0 to 100) against all the others as references; None with fewer than two replies.

    Lower-cased words; orders without a match are smoothed by 1 / (2^k * n-grams) as in sacrebleu's "exp"; the brevity
    penalty takes the nearest length. One pass over all n-grams, not one a pair: 2,000 replies take about a second.
    """
    split = [w for text in replies if (w := tokens(text))]
    if len(split) < 2:
        return None
    grams = [[Counter(ngrams(words, n)) for words in split] for n in range(1, ORDER + 1)]
    matched = [_matches(counts) for counts in grams]
    lengths = [len(words) for words in split]
    return sum(_bleu(i, matched, lengths) for i in range(len(split))) / len(split)


def _bleu(i: int, matched: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    smooth, logs = 1.0, []
    for n in range(1, ORDER + 1):
        total, hits = lengths[i] - n + 1, matched[n - 1][i]
        if total < 1:
            break
        if hits == 0:
            smooth *= 2
        logs.append(math.log(hits / total if hits else 1 / (smooth * total)))
    nearest = min((abs(x - lengths[i]), x) for k, x in enumerate(lengths) if k != i)[1]
    brevity = min(0.0, 1 - nearest / lengths[i])
    return 100 * math.exp(brevity + sum(logs) / len(logs)) if matched[0][i] else 0.0
