"""Paired comparisons of two arms, and what many of them do to a p-value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from empathy.stats.clustered import Floats, Ints

_CELLS = 20_000_000
"""Signs held at once: 160 MB."""
_EXACT_CLUSTERS = 13
"""Up to here all 2^C sign patterns are counted; above, random ones are drawn."""


def sign_flip_p(differences_N: Floats, cluster_N: Ints, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of "no difference": whole clusters (C) of paired differences (N,) change sign together.

    Exact up to 13 clusters; else (1 + hits) / (1 + permutations) (Phipson and Smyth 2010), never 0.
    """
    sums_C = np.bincount(np.unique(cluster_N, return_inverse=True)[1].reshape(-1), differences_N)
    observed = abs(sums_C.sum()) - 1e-9  # sums of halves are exact; those of other values are not
    if len(sums_C) <= _EXACT_CLUSTERS:
        patterns = (np.arange(2 ** len(sums_C))[:, None] >> np.arange(len(sums_C))) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1) @ sums_C) >= observed))
    flips = _flips if permutations * len(sums_C) <= _CELLS else _drawn
    hits = sum(
        int(np.sum(np.abs(signs_BC @ sums_C) >= observed)) for signs_BC in flips(permutations, len(sums_C), seed)
    )
    return (1 + hits) / (1 + permutations)


def _drawn(permutations: int, clusters: int, seed: int) -> Iterator[Floats]:
    """Signs (B, C) of random sign patterns, so many at a time as memory is meant for."""
    rng, step = np.random.default_rng(seed), max(1, _CELLS // clusters)
    for start in range(0, permutations, step):
        heads_BC = rng.integers(0, 2, size=(min(step, permutations - start), clusters), dtype=np.int8)
        yield 2 * heads_BC.astype(np.float64) - 1


@lru_cache(maxsize=1)
def _flips(permutations: int, clusters: int, seed: int) -> tuple[Floats, ...]:
    """The same, kept: a report's contrasts have one seed and, mostly, one number of clusters, and drawing the signs is
    most of the work."""
    return tuple(_drawn(permutations, clusters, seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979) of a family of p-values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1.0)
    return [float(x) for x in adjusted]
