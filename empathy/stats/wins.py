"""What a set of verdicts of one arm against one opponent says.

Shapes: N judge calls, P pairs (a dialogue and a repeat; two calls each where both orders were asked).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from empathy.stats.clustered import Floats, Interval, Ints, clustered_mean, clustered_share, label_codes

DIMENSIONS = ("cognitive", "affective", "compassionate")
OUTCOMES = ("overall", *DIMENSIONS)


@dataclass(frozen=True)
class Calls:
    """Verdicts of one judge as arrays (N,). `scores[outcome]`: 1 the arm won, .5 tie, 0 lost, NaN not readable."""

    mode: Literal["robust", "paper"]
    dialogues: npt.NDArray[np.object_]
    groups: npt.NDArray[np.object_]
    pairs: Ints
    arm_first: npt.NDArray[np.bool_]
    scores: dict[str, Floats]
    words_difference: Floats
    uncalled: int
    """How many were decided without a call (an empty reply, identical replies)."""

    @cached_property
    def clusters(self) -> Ints:
        """Cluster of each call as an integer (N,)."""
        return label_codes(self.groups.astype(str))

    @property
    def both_orders(self) -> bool:
        """Whether both orders were asked for (paper mode shows the opponent first, always)."""
        return bool(self.arm_first.any() and not self.arm_first.all())


def _score(column: pa.ChunkedArray) -> Floats:
    """Score 1 for "a", .5 for "tie", 0 for "b", NaN for null."""
    index = pc.index_in(column, value_set=pa.array(["b", "tie", "a"]))
    scores: Floats = pc.cast(index, pa.float64()).to_numpy() / 2
    return scores


def calls_of(table: pa.Table) -> Calls:
    """The verdicts of a table of `Verdict` columns. Raises ValueError when it mixes modes or judges."""
    for name in ("mode", "judge"):
        if len(values := pc.unique(table[name]).to_pylist()) > 1:
            raise ValueError(f"verdicts of several {name}s {values}: estimate each apart")
    dialogue_N, group_N = (np.asarray(table[n].to_pylist(), dtype=object) for n in ("dialogue_id", "group"))
    pair_N = label_codes([f"{r}/{d}" for d, r in zip(dialogue_N, table["repeat"].to_pylist(), strict=True)])
    return Calls(
        mode=table["mode"][0].as_py() if table.num_rows else "robust",
        dialogues=dialogue_N,
        groups=group_N,
        pairs=pair_N,
        arm_first=pc.equal(table["first"], "a").to_numpy(),
        scores={name: _score(table[name]) for name in OUTCOMES},
        words_difference=pc.subtract(table["words_a"], table["words_b"]).to_numpy().astype(np.float64),
        uncalled=int(pc.sum(pc.equal(table["attempts"], 0)).as_py() or 0),
    )


def win_scores(calls: Calls, outcome: str = "overall") -> Floats:
    """The scores (N,) that a win rate is the mean of: in `paper` mode an unreadable verdict is lost, as published."""
    scores = calls.scores[outcome]
    return np.nan_to_num(scores, nan=0.0) if calls.mode == "paper" and outcome == "overall" else scores


def pair_outcomes(calls: Calls) -> tuple[Floats, Floats, Ints]:
    """Scores of pairs read in both orders: with the arm first (P,), with it second (P,), and clusters (P,)."""
    shape = int(calls.pairs.max(initial=-1)) + 1
    first_P, second_P = np.full(shape, np.nan), np.full(shape, np.nan)
    cluster_P = np.zeros(shape, dtype=np.int64)
    for target, rows in ((first_P, calls.arm_first), (second_P, ~calls.arm_first)):
        target[calls.pairs[rows]] = calls.scores["overall"][rows]
    cluster_P[calls.pairs] = calls.clusters
    both = ~np.isnan(first_P) & ~np.isnan(second_P)
    return first_P[both], second_P[both], cluster_P[both]


def summary(calls: Calls) -> dict[str, Interval]:
    """Every estimate of one arm against one opponent under one judge, by measure.

    win_rate                     (wins + ties / 2) / n over readable verdicts; `paper` mode: wins / n over all
    win_rate_cognitive, ...      the same on one dimension
    strict_win_rate              share of pairs that the arm won in both orders
    tie_share                    share of readable verdicts that are ties
    order_consistency            share of pairs with one outcome in both orders
    first_position_bias          (wins of the reply shown first + ties / 2) / n - 1/2
    missing_share                verdicts that are unreadable, refused or errors
    win_rate_missing_lost, _won  W if every missing verdict were lost, or won
    words_difference             words of the arm's reply less words of the opponent's
    """
    cluster_N, scores_N = calls.clusters, calls.scores["overall"]
    missing_N = np.isnan(scores_N)
    found = {"win_rate": clustered_share(win_scores(calls), cluster_N)}
    if calls.mode == "robust":
        found |= {f"win_rate_{d}": clustered_share(win_scores(calls, d), cluster_N) for d in DIMENSIONS}
    if calls.both_orders:
        first_P, second_P, cluster_P = pair_outcomes(calls)
        found["strict_win_rate"] = clustered_share(((first_P == 1) & (second_P == 1)).astype(float), cluster_P)
        found["order_consistency"] = clustered_share((first_P == second_P).astype(float), cluster_P)
        shown_first_N = np.where(calls.arm_first, scores_N, 1 - scores_N)
        found["first_position_bias"] = clustered_mean(shown_first_N - 0.5, cluster_N)
    ties_N = np.where(missing_N, np.nan, scores_N == 0.5)
    return found | {
        "tie_share": clustered_share(ties_N, cluster_N),
        "missing_share": clustered_share(missing_N.astype(float), cluster_N),
        "win_rate_missing_lost": clustered_share(np.nan_to_num(scores_N, nan=0.0), cluster_N),
        "win_rate_missing_won": clustered_share(np.nan_to_num(scores_N, nan=1.0), cluster_N),
        "words_difference": clustered_mean(calls.words_difference, cluster_N),
    }


def prompt_scores(calls: Calls) -> dict[str, float]:
    """Mean score of the arm on each dialogue, over orders and repeats, by id; dialogues never read are left out."""
    ids, index_N = np.unique(calls.dialogues.astype(str), return_inverse=True)
    scores_N = win_scores(calls)
    known = ~np.isnan(scores_N)
    total, count = (
        np.bincount(index_N.reshape(-1)[known], w, len(ids)) for w in (scores_N[known], np.ones(known.sum()))
    )
    return {str(i): float(s / n) for i, s, n in zip(ids, total, count, strict=True) if n}
