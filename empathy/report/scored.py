"""Estimates from a rubric: how each reply by itself was scored, 1 to 5, and each arm less its base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from empathy.judges.shown import DIMENSIONS
from empathy.records import Estimate, Score
from empathy.report.cells import Cells, Responder
from empathy.report.judged import estimate
from empathy.specs import VerdictsSpec
from empathy.stages import Stage
from empathy.stats.clustered import clustered_mean, clustered_share, label_codes
from empathy.store import Store

Scores = dict[str, Score]
"""By dialogue."""


def estimates(cells: Cells, store: Store) -> Iterator[Estimate]:
    """rubric_overall, rubric_cognitive, ...   mean of the replies that could be scored
    rubric_missing_share                    replies whose score could not be read, or was refused
    rubric_less_base                        an arm's overall score less its base's, dialogue by dialogue
    """
    read: dict[str, Scores] = {}
    for r in [*cells.bases, *cells.arms, *cells.others]:
        if r.scores:
            read[r.slot] = _read(r.scores, store)
            yield from _own(r, r.scores, read[r.slot])
            base = cells.base_of(r) if r.is_arm else None
            if base and base.slot in read:
                yield from _less(r, r.scores, read[r.slot], base, read[base.slot])


def _read(stage: Stage, store: Store) -> Scores:
    return {s.dialogue_id: s for s in store.get(stage).read(Score) if s.sample == 0}


def _judge(stage: Stage) -> tuple[str, str]:
    judge = cast(VerdictsSpec, stage.spec).judge
    return judge.model, f"mean of {judge.calls} calls"


def _own(r: Responder, stage: Stage, scores: Scores) -> Iterator[Estimate]:
    judge, note = _judge(stage)
    rows = list(scores.values())
    clusters = label_codes([s.group for s in rows])
    for name in ("overall", *DIMENSIONS):
        values_N = np.array([getattr(s, name) for s in rows], dtype=np.float64)  # None becomes NaN, and is left out
        yield estimate(r.slot, None, f"rubric_{name}", clustered_mean(values_N, clusters), stage.key, judge, note)
    missing_N = np.array([s.overall is None for s in rows], dtype=np.float64)
    yield estimate(r.slot, None, "rubric_missing_share", clustered_share(missing_N, clusters), stage.key, judge, note)


def _less(r: Responder, stage: Stage, ours: Scores, base: Responder, theirs: Scores) -> Iterator[Estimate]:
    judge, note = _judge(stage)
    pairs = [(s, theirs[d]) for d, s in ours.items() if d in theirs]
    both = [(a.overall - b.overall, a.group) for a, b in pairs if a.overall is not None and b.overall is not None]
    values_N, clusters = np.array([x for x, _ in both], dtype=np.float64), label_codes([g for _, g in both])
    yield estimate(r.slot, base.slot, "rubric_less_base", clustered_mean(values_N, clusters), stage.key, judge, note)
