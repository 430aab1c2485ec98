"""One seeded cluster bootstrap for every arm and contrast of a report.

Shapes: N rows, C clusters, K arms, B replicates. Clusters are drawn with replacement; all arms share the
draws, so that a difference of two arms is taken draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from empathy.stats.clustered import LEVEL, Floats, Ints

_CHUNK_CELLS = 20_000_000
"""Cluster counts held at once: 160 MB, whatever B and C."""


def cluster_sums(values: Sequence[Floats], clusters: Sequence[Ints], n_clusters: int) -> tuple[Floats, Floats]:
    """Sums and row counts by cluster, (C, K) each, of K arms with values and clusters (N_k,); NaN rows are left out."""
    sums_CK, counts_CK = np.zeros((n_clusters, len(values))), np.zeros((n_clusters, len(values)))
    for k, (values_N, cluster_N) in enumerate(zip(values, clusters, strict=True)):
        known = ~np.isnan(values_N)
        sums_CK[:, k] = np.bincount(cluster_N[known], values_N[known], n_clusters)
        counts_CK[:, k] = np.bincount(cluster_N[known], minlength=n_clusters)
    return sums_CK, counts_CK


def bootstrap_means(sums_CK: Floats, counts_CK: Floats, replicates: int, seed: int) -> Floats:
    """Means (B, K) over B draws of C clusters. NaN where a draw holds no row of an arm.

    A draw is a row of multinomial cluster counts: a mean is (draws @ sums) / (draws @ rows), two matrix products.
    """
    n_clusters = len(sums_CK)
    rng = np.random.default_rng(seed)
    chance_C = np.full(n_clusters, 1 / n_clusters)
    means_BK = np.empty((replicates, sums_CK.shape[1]))
    step = max(1, _CHUNK_CELLS // n_clusters)
    for start in range(0, replicates, step):
        stop = min(start + step, replicates)
        draws_BC = rng.multinomial(n_clusters, chance_C, size=stop - start).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, and means what it says
            means_BK[start:stop] = (draws_BC @ sums_CK) / (draws_BC @ counts_CK)
    return means_BK


def percentile_interval(replicates_B: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """The percentile interval of bootstrap replicates (B,); None when any of them is unknown."""
    if not len(replicates_B) or np.isnan(replicates_B).any():
        return None
    low, high = np.quantile(replicates_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
