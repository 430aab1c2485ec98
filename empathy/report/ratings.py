"""The ratings that chose what students learned from, people's or a judge's: how many, how high, how many decided it.

What students answer is no part of this: see `empathy.report.scored`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from empathy import cases
from empathy.artifact import Artifact
from empathy.candidates import Choice
from empathy.records import BAD, GOOD, HUMAN, OKAY
from empathy.report.cells import Cells
from empathy.report.drops import learned_from
from empathy.specs import ExamplesSpec, VerdictsSpec
from empathy.stages import Stage
from empathy.stats.clustered import clustered_mean, label_codes
from empathy.store import Store

Who = Literal["human", "learned"]
PEOPLE = "people"
LEVELS = {"Bad": BAD, "Okay": OKAY, "Good": GOOD}


def ratings(cells: Cells, store: Store) -> list[dict[str, Any]]:
    """One entry for each kind of replies, rater and threshold that decides a training set of some arm.

    A set with an input that the store no longer holds is left out. `of` is the key of the replies, None for people's;
    mean, low and high are None where they cannot be known.
    """
    slots: dict[str, list[str]] = {}
    sets: dict[str, Stage] = {}
    for arm in cells.arms:
        for stage in learned_from(arm.checkpoint):
            sets[stage.key] = stage
            slots.setdefault(stage.key, []).append(arm.slot)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key, stage in sets.items():
        inputs = {name: store.find(needed.kind, needed.key) for name, needed in stage.inputs.items()}
        for who in deciding(stage) if all(inputs.values()) else ():
            facts = _facts(stage, who)
            ident = tuple(facts.values())
            if ident not in found:
                found[ident] = facts | _told(stage, who, cast(dict[str, Artifact], inputs)) | {"slots": []}
            found[ident]["slots"] = sorted({*found[ident]["slots"], *slots[key]})
            found[ident]["unrated_is_good"] |= _forgives(stage)
    return list(found.values())


def deciding(stage: Stage) -> Iterator[Who]:
    """Whose replies' ratings a set of examples is selected by."""
    needs = Choice(_spec(stage)).needs
    whose: tuple[Who, ...] = ("human", "learned")
    return (who for who in whose if needs & {f"{who}_rating", f"{who}_mark"})


def good_from(stage: Stage) -> float:
    """The least rating of a Good reply: a judge's score, or people's 1 to 3."""
    spec = _spec(stage)
    return spec.good if spec.good is not None else int(getattr(spec.method, "least_rating", GOOD))


def _spec(stage: Stage) -> ExamplesSpec:
    assert isinstance(stage.spec, ExamplesSpec), stage
    return stage.spec


def _facts(stage: Stage, who: Who) -> dict[str, Any]:
    """What tells one entry from another."""
    spec, scores = _spec(stage), stage.inputs.get(f"scores:{who}")
    rated, by = (scores, cast(VerdictsSpec, scores.spec).judge.model) if scores else (stage.inputs["dialogues"], PEOPLE)
    return {
        "of": None if who == HUMAN else stage.inputs["replies"].key,
        "by": by,
        "good": good_from(stage),
        "split": spec.split,
        "kind": rated.kind,
        "key": rated.key,
    }


def _forgives(stage: Stage) -> bool:
    """Whether people's missing ratings are taken as Good; a judge's never are."""
    spec = _spec(stage)
    return spec.good is None and bool(getattr(spec.method, "unrated_is_good", False))


def _told(stage: Stage, who: Who, inputs: dict[str, Artifact]) -> dict[str, Any]:
    spec, good, mark = _spec(stage), good_from(stage), f"{who}_mark"
    parts = range(len(inputs["dialogues"].parts))
    rows = pl.concat(_marks(cases.read(spec, inputs, part, 0, {mark}), who) for part in parts)
    known = rows.drop_nulls(mark)
    values_N = known[mark].cast(pl.Float64).to_numpy()
    mean = clustered_mean(values_N, label_codes(known["group"].to_list()))
    return {
        "replies": len(rows),
        "unrated": len(rows) - len(known),
        "at_least": int(np.sum(values_N >= good)),
        "below": int(np.sum(values_N < good)),
        "mean": mean.value,
        "low": mean.low,
        "high": mean.high,
        "clusters": mean.clusters,
        "levels": _levels(values_N, people=spec.good is None),
        "unrated_is_good": False,
    }


def _marks(rows: pl.DataFrame, who: Who) -> pl.DataFrame:
    """A row a reply: a person's is there once, however many samples of a teacher's stand beside it."""
    there = rows.filter(pl.col(who).is_not_null())
    alone = there.unique(["id"], keep="first") if who == HUMAN else there
    return alone.select("group", pl.col(f"{who}_mark").cast(pl.Float64))


def _levels(values_N: Any, people: bool) -> list[tuple[str, int]]:
    """How many replies were rated how: Bad, Okay, Good; or from 1 to 5 in steps of 1, 5 with those from 4 on."""
    if people:
        return [(name, int(np.sum(values_N == level))) for name, level in LEVELS.items()]
    counts, edges = np.histogram(values_N, bins=[1, 2, 3, 4, 5])
    steps = [f"{low}–{high}" for low, high in pairwise(edges.tolist())]
    return [(step, int(n)) for step, n in zip(steps, counts, strict=True)]
