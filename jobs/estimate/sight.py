"""What n test prompts will be able to tell apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

WITHIN = 0.05
"""Correlation of two outcomes in one cluster that is assumed. W&P's human ratings show .043: SE by part_no .00968,
by row .00821, ten dialogues a cluster."""
ALIKE = 0.2
"""Correlation of two arms' outcomes on one prompt that is assumed."""
POWER = 0.8


@dataclass(frozen=True)
class Sight:
    """`design` is the factor by which clusters raise the variance; `clusters` None where they are not known (then
    rows are the unit and the figures are the best case)."""

    n: int
    clusters: int | None = None
    design: float = 1.0

    @classmethod
    def of_groups(cls, groups: Sequence[str]) -> Sight:
        """`groups` names the cluster of each prompt. Design effect 1 + (m - 1) * WITHIN with m = sum m_c^2 / n (Kish
        1965, for clusters of unequal size)."""
        sizes = Counter(groups).values()
        m = sum(s * s for s in sizes) / max(1, len(groups))
        return cls(len(groups), len(sizes), 1 + max(0.0, m - 1) * WITHIN)

    @property
    def tells(self) -> bool:
        """Whether an interval around a win rate of 50% leaves anything out."""
        return self.clusters != 1 and self.half_width() < 0.5

    @property
    def quantile(self) -> float:
        """Two-sided 95% of Student's t with C - 1 degrees of freedom, by its expansion in 1 / (C - 1) (Abramowitz and
        Stegun 26.7.5, two terms: 2% low at 4 degrees, exact to four digits from 30)."""
        z = NormalDist().inv_cdf(0.975)
        if self.clusters is None or self.clusters < 2:
            return z
        v = self.clusters - 1
        return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)

    def half_width(self, share: float = 0.5) -> float:
        """Half of the 95% interval of a win rate near `share`."""
        return self.quantile * math.sqrt(share * (1 - share) * self.design / self.n)

    def paired(self, upper: float) -> float:
        """The difference below a win rate of `upper` that two arms judged on the same prompts show with 80% power."""
        factor = (self.quantile + NormalDist().inv_cdf(POWER)) ** 2 * self.design / self.n
        low, high = 0.0, upper
        for _ in range(40):  # d^2 = factor * variance(d) has one root here: bisect
            d = (low + high) / 2
            low, high = (low, d) if d * d > factor * _variance(upper, upper - d) else (d, high)
        return high


def _variance(p: float, q: float) -> float:
    a, b = p * (1 - p), q * (1 - q)
    return a + b - 2 * ALIKE * math.sqrt(a * b)
