"""What a checkpoint's log-probabilities of held-out replies say. Shapes: N examples.

NLL is in nats per token of the reply, end token included. Tokens are a tokenizer's: compare arms of one student only.

Preference accuracy is the share of held-out pairs where the chosen reply scores above the rejected one, by four scores:
    summed      log p(reply): favours short replies
    per_token   log p(reply) / tokens
    over_base   log p(reply) - log p_base(reply): what training added; for SFT and DPO arms alike, not for the base
    implicit    log p(reply) - log p_ref(reply), ref the policy that DPO started from (Rafailov et al. 2023); DPO arms
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from empathy.stats.clustered import (
    Floats,
    Interval,
    Ints,
    clustered_mean,
    clustered_ratio,
    clustered_share,
    label_codes,
)

Groups = Mapping[str, str]
"""The cluster of each example, by example id."""


@dataclass(frozen=True)
class Scored:
    """Log-probabilities (N,) in nats and token counts (N,) of one side of the examples `ids` (N,)."""

    ids: tuple[str, ...]
    nats: Floats
    tokens: Floats

    def of(self, ids: tuple[str, ...]) -> Scored:
        """The same for `ids`, in their order."""
        at = {ident: i for i, ident in enumerate(self.ids)}
        rows = [at[i] for i in ids]
        return Scored(ids, self.nats[rows], self.tokens[rows])


def scored(table: pa.Table, side: str) -> Scored:
    """One side ("reply", "chosen", "rejected") of a table of `Logprob` columns, each example once."""
    kept = {r["example_id"]: r for r in table.to_pylist() if r["side"] == side}
    nats, tokens = (np.array([r[n] for r in kept.values()], dtype=np.float64) for n in ("logprob_nats", "tokens"))
    return Scored(tuple(kept), nats, tokens)


def _clusters(ids: tuple[str, ...], groups: Groups) -> Ints:
    return label_codes([groups[i] for i in ids])


def common(*several: Scored) -> tuple[str, ...]:
    """Example ids that all have, in the order of the first."""
    shared = set.intersection(*(set(s.ids) for s in several))
    return tuple(i for i in several[0].ids if i in shared)


def nll_per_token(replies: Scored, groups: Groups) -> Interval:
    """Sum of NLL over sum of tokens."""
    return clustered_ratio(-replies.nats, replies.tokens, _clusters(replies.ids, groups))


def nll_difference(ours: Scored, theirs: Scored, groups: Groups) -> Interval:
    """NLL per token, ours less theirs, on the examples both have. Raises ValueError when their tokens differ."""
    ids = common(ours, theirs)
    ours, theirs = ours.of(ids), theirs.of(ids)
    if not np.array_equal(ours.tokens, theirs.tokens):
        raise ValueError("NLL per token of two tokenizers has no difference: compare arms of one student")
    return clustered_ratio(theirs.nats - ours.nats, ours.tokens, _clusters(ids, groups))


def margins(
    chosen: Scored, rejected: Scored, reference: tuple[Scored, Scored] | None = None, per_token: bool = False
) -> Floats:
    """Score of chosen less score of rejected (N,), rows as in `chosen`; `reference` is (chosen, rejected) likewise."""
    ids = chosen.ids
    rejected = rejected.of(ids)
    scores = [s.nats / s.tokens if per_token else s.nats for s in (chosen, rejected)]
    if reference is not None:
        scores = [score - ref.of(ids).nats for score, ref in zip(scores, reference, strict=True)]
    return scores[0] - scores[1]


def preference_accuracy(margins_N: Floats, ids: tuple[str, ...], groups: Groups) -> Interval:
    """Share of pairs with a margin above 0."""
    return clustered_share((margins_N > 0).astype(np.float64), _clusters(ids, groups))


def accuracy_difference(ours_N: Floats, theirs_N: Floats, ids: tuple[str, ...], groups: Groups) -> Interval:
    """Share of pairs with a margin above 0, ours less theirs, pair by pair; from -1 to 1."""
    found = clustered_mean((ours_N > 0).astype(np.float64) - (theirs_N > 0), _clusters(ids, groups))
    low, high = (None if x is None else min(1.0, max(-1.0, x)) for x in (found.low, found.high))
    return replace(found, low=low, high=high)
