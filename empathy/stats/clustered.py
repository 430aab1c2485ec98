"""Means and ratios whose unit is the cluster (conversation, persona, W&P `part_no`), not the row.

Shapes: N rows, C clusters. scipy is loaded when an interval is asked for, not when this module is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval; `se` the standard error. None where it cannot be known (no rows; one cluster)."""

    value: float | None
    low: float | None
    high: float | None
    se: float | None
    n: int
    clusters: int


def label_codes(labels: Sequence[Any] | npt.NDArray[Any]) -> Ints:
    """Labels (N,) as integers 0..C-1 (N,), equal labels equal integers."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64).reshape(-1)


@cache
def t_quantile(degrees: int) -> float:
    """The quantile of Student's t that leaves (1 - LEVEL) / 2 above it."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, degrees))


def clustered_ratio(numerator_N: Floats, denominator_N: Floats, cluster_N: Ints) -> Interval:
    """R = sum(numerator) / sum(denominator) with a cluster-robust interval, t with C - 1 degrees of freedom.

    SE = sqrt(C / (C - 1) * sum_c (sum_{i in c} (numerator_i - R * denominator_i))^2) / sum(denominator): the linearised
    ratio estimator (Cochran 1977, section 6.3, rows replaced by cluster totals). A denominator of ones gives the mean.
    """
    total = float(denominator_N.sum())
    clusters = int(np.count_nonzero(np.bincount(cluster_N)))
    if total == 0:
        return Interval(None, None, None, None, len(cluster_N), clusters)
    ratio = float(numerator_N.sum()) / total
    if clusters < 2:
        return Interval(ratio, None, None, None, len(cluster_N), clusters)
    residual_C = np.bincount(cluster_N, numerator_N - ratio * denominator_N)
    se = float(np.sqrt(clusters / (clusters - 1) * np.square(residual_C).sum()) / total)
    half = t_quantile(clusters - 1) * se
    return Interval(ratio, ratio - half, ratio + half, se, len(cluster_N), clusters)


def clustered_mean(values_N: Floats, cluster_N: Ints) -> Interval:
    """The mean of the rows with its cluster-robust interval. Rows that are NaN are left out."""
    known = ~np.isnan(values_N)
    return clustered_ratio(values_N[known], np.ones(int(known.sum())), cluster_N[known])


def clustered_share(values_N: Floats, cluster_N: Ints) -> Interval:
    """As `clustered_mean`, for values from 0 to 1: near the ends (below .1, above .9, or where the t interval leaves
    [0, 1]) the interval is Wilson's.

    Wilson's n is then the effective one, value * (1 - value) / SE^2, at most N; where every row is 0 or every row is 1,
    SE says nothing, and n is the number of clusters. z is replaced by t with C - 1.
    """
    mean = clustered_mean(values_N, cluster_N)
    if mean.value is None or mean.se is None or mean.low is None or mean.high is None:
        return mean
    if 0.1 <= mean.value <= 0.9 and mean.low >= 0 and mean.high <= 1:
        return mean
    spread = mean.value * (1 - mean.value)
    effective = min(mean.n, spread / mean.se**2) if mean.se > 0 else mean.clusters
    low, high = wilson(mean.value, effective, t_quantile(mean.clusters - 1))
    return Interval(mean.value, low, high, mean.se, mean.n, mean.clusters)


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) of a share observed on `n` rows."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)
