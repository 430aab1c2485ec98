"""Estimates from verdicts: every arm and base against its opponents, and arms against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from empathy.records import Estimate
from empathy.report.cells import Cells, Judged, Responder
from empathy.specs import ReportSpec
from empathy.stats.bootstrap import bootstrap_means, cluster_sums, percentile_interval
from empathy.stats.clustered import Floats, Interval, Ints, clustered_mean
from empathy.stats.contrasts import holm, sign_flip_p
from empathy.stats.wins import Calls, calls_of, prompt_scores, summary, win_scores
from empathy.store import Store

FIRST = {"wording": "0"}
"""The wording of arms that choose none."""
REGIMES = ("sft", "dpo", "sft+dpo")
"""Each is compared with those before it."""
PLAIN = ("naive", None)
"""What a strategy is compared with: the naive one, and of teachers who answer those who are told none."""
MISSING_LIMIT = 0.02
"""More verdicts than this share missing, and a row of the table is marked as failed."""


def estimate(
    arm: str, opponent: str | None, measure: str, x: Interval, key: str, judge: str | None, note: str = ""
) -> Estimate:
    """An interval under its name."""
    return Estimate(arm, opponent, measure, x.value, x.low, x.high, x.n, x.clusters, judge, note, key)


@dataclass(frozen=True)
class Table:
    """An arm's verdicts against one opponent, loaded."""

    arm: Responder
    judged: Judged
    calls: Calls
    rows: pa.Table
    """The columns of its verdicts, the judge's words left out."""

    @property
    def judge(self) -> str:
        return self.judged.judge.model

    @property
    def key(self) -> str:
        return self.judged.stage.key


@dataclass(frozen=True)
class Contrast:
    """Two arms against one opponent under one judge, dialogue by dialogue: differences (N,) and their groups (N,)."""

    ours: Table
    theirs: Table
    differences: Floats
    groups: list[str]


def load(cells: Cells, store: Store) -> list[Table]:
    """Every verdicts artifact of the report that has rows, the arms' before the bases'."""
    tables = []
    for arm in [*cells.arms, *cells.bases]:
        for judged in arm.verdicts:
            artifact = store.get(judged.stage)
            table = pa.concat_tables(artifact.table(k).drop_columns(["raw"]) for k in range(len(artifact.parts)))
            if table.num_rows:
                tables.append(Table(arm, judged, calls_of(table), table))
    return tables


def estimates(cells: Cells, tables: Iterable[Table]) -> Iterator[Estimate]:
    """All measures of `empathy.stats.wins.summary`, for every table."""
    for t in tables:
        for measure, found in summary(t.calls).items():
            yield estimate(t.arm.slot, t.judged.opponent, measure, found, t.key, t.judge, f"{t.calls.mode} mode")


# ---------------------------------------------------------------- contrasts


def differ_in_one(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether two arms are a contrast: one factor differs, not the seed; a strategy is compared with `PLAIN` alone."""
    ours, theirs = FIRST | dict(ours), FIRST | dict(theirs)
    different = [k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)]
    if different == ["strategy"]:
        return ours.get("strategy") in PLAIN or theirs.get("strategy") in PLAIN
    return len(different) == 1 and different != ["seed"]


def comes_first(x: Mapping[str, str], y: Mapping[str, str]) -> bool:
    """Whether of two arms that are a contrast, in the order of the report, the first is the one that is subtracted:
    the plain one from a strategy, the regime with less training from the one with more, else the earlier arm."""
    if x.get("strategy") != y.get("strategy"):
        return x.get("strategy") in PLAIN
    if x.get("regime") != y.get("regime"):
        return REGIMES.index(x["regime"]) < REGIMES.index(y["regime"])
    return True


def _paired(ours: Table, theirs: Table) -> Contrast | None:
    mine, yours = prompt_scores(ours.calls), prompt_scores(theirs.calls)
    group = dict(zip(ours.calls.dialogues, ours.calls.groups, strict=True))
    both = [d for d in mine if d in yours]
    if not both:
        return None
    return Contrast(ours, theirs, np.array([mine[d] - yours[d] for d in both]), [group[d] for d in both])


def families(cells: Cells, tables: Iterable[Table]) -> list[list[Contrast]]:
    """Contrasts by family: one opponent and one judge. More training less less of it, a strategy less naive."""
    by_family: dict[tuple[str, str], list[Table]] = defaultdict(list)
    for t in tables:
        by_family[t.judged.opponent, t.judge].append(t)
    found = []
    for members in by_family.values():
        pairs = [p for p in combinations(members, 2) if differ_in_one(*(cells.factors(t.arm.slot) for t in p))]
        ordered = [(y, x) if comes_first(*(cells.factors(t.arm.slot) for t in (x, y))) else (x, y) for x, y in pairs]
        if contrasts := [c for pair in ordered if (c := _paired(*pair))]:
            found.append(contrasts)
    return found


def _codes(groups: Iterable[Any], index: Mapping[Any, int]) -> Ints:
    return np.array([index[g] for g in groups], dtype=np.int64)


def resampled(
    tables: list[Table], contrasts: list[Contrast], spec: ReportSpec
) -> tuple[list[tuple[float, float] | None], list[tuple[float, float] | None]]:
    """Percentile intervals of every win rate and every contrast from one shared cluster bootstrap."""
    labels = sorted({str(g) for t in tables for g in t.calls.groups})
    index: dict[Any, int] = {g: i for i, g in enumerate(labels)}
    values = [win_scores(t.calls) for t in tables] + [c.differences for c in contrasts]
    clusters = [_codes(t.calls.groups, index) for t in tables] + [_codes(c.groups, index) for c in contrasts]
    if not labels or len(labels) < 2:
        return [None] * len(tables), [None] * len(contrasts)
    means_BK = bootstrap_means(*cluster_sums(values, clusters, len(labels)), spec.bootstrap, spec.seed)
    intervals = [percentile_interval(means_BK[:, k]) for k in range(len(values))]
    return intervals[: len(tables)], intervals[len(tables) :]


def compared(cells: Cells, tables: list[Table], spec: ReportSpec) -> Iterator[Estimate]:
    """Bootstrap intervals of the win rates, then contrasts with their p (sign flips of whole clusters) and Holm's."""
    grouped = families(cells, tables)
    flat = [c for family in grouped for c in family]
    of_tables, of_contrasts = resampled(tables, flat, spec)
    for t, found in zip(tables, of_tables, strict=True):
        mean = clustered_mean(win_scores(t.calls), t.calls.clusters)
        low, high = found or (None, None)
        boot = Interval(mean.value, low, high, mean.se, mean.n, mean.clusters)
        note = f"{spec.bootstrap} cluster bootstrap replicates, seed {spec.seed}"
        yield estimate(t.arm.slot, t.judged.opponent, "win_rate_bootstrap", boot, t.key, t.judge, note)
    interval_of = dict(zip(map(id, flat), of_contrasts, strict=True))
    for family in grouped:
        p = [sign_flip_p(c.differences, _codes(c.groups, _index(c.groups)), spec.bootstrap, spec.seed) for c in family]
        for c, raw, adjusted in zip(family, p, holm(p), strict=True):
            yield from _contrast(c, interval_of[id(c)], raw, adjusted, len(family))


def _index(groups: Iterable[str]) -> dict[str, int]:
    return {g: i for i, g in enumerate(dict.fromkeys(groups))}


def _contrast(
    c: Contrast, interval: tuple[float, float] | None, p: float, adjusted: float, family: int
) -> Iterator[Estimate]:
    low, high = interval or (None, None)
    mean, n, clusters = float(c.differences.mean()), len(c.groups), len(set(c.groups))
    note = f"against {c.ours.judged.opponent}, family of {family}"
    for measure, x in {
        "contrast": Interval(mean, low, high, None, n, clusters),
        "contrast_p": Interval(p, None, None, None, n, clusters),
        "contrast_p_holm": Interval(adjusted, None, None, None, n, clusters),
    }.items():
        yield estimate(c.ours.arm.slot, c.theirs.arm.slot, measure, x, c.ours.key, c.ours.judge, note)
