"""Estimates that need no judge: held-out likelihood, preference accuracy, text metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from empathy.judges.treat import treat
from empathy.metrics import CORPUS, PER_REPLY
from empathy.metrics import likelihood as ll
from empathy.metrics.overlap import STEMMER, bleu, rouge_l
from empathy.records import Demonstration, Dialogue, Estimate, Preference, Reply
from empathy.report.cells import Cells, Responder
from empathy.report.judged import estimate
from empathy.stages import Stage
from empathy.stats.clustered import Floats, Interval, clustered_mean, clustered_share, label_codes
from empathy.store import Store

SHARES = ("question_share", "template_share")


def _table(stage: Stage, store: Store) -> pa.Table:
    artifact = store.get(stage)
    return pa.concat_tables(artifact.table(k) for k in range(len(artifact.parts)))


class Heldout:
    """Held-out examples and what checkpoints give to them; each artifact is read once."""

    def __init__(self, cells: Cells, store: Store):
        self.cells, self.store = cells, store
        self._scored: dict[tuple[str, str], ll.Scored] = {}
        self._groups: dict[str, dict[str, str]] = {}

    def groups(self, objective: str, lesson: str) -> dict[str, str]:
        """Cluster of each example, by id."""
        stage = self.cells.heldout[objective, lesson]
        cls: Any = Demonstration if objective == "sft" else Preference
        if stage.key not in self._groups:
            self._groups[stage.key] = {e.id: e.group for e in self.store.get(stage).read(cls)}
        return self._groups[stage.key]

    def scored(self, stage: Stage, side: str) -> ll.Scored:
        if (stage.key, side) not in self._scored:
            self._scored[stage.key, side] = ll.scored(_table(stage, self.store), side)
        return self._scored[stage.key, side]

    def margins(self, stage: Stage, kind: str, reference: Stage | None = None) -> tuple[tuple[str, ...], Floats]:
        """Ids and margins (N,) of the pairs that `stage` (and `reference`) scored, by a kind of score."""
        stages = [stage] + ([reference] if reference else [])
        found = [self.scored(s, side) for s in stages for side in ("chosen", "rejected")]
        ids = ll.common(*found)
        chosen, rejected, *ref = (f.of(ids) for f in found)
        pair = (ref[0], ref[1]) if reference else None
        return ids, ll.margins(chosen, rejected, pair, per_token=kind == "per_token")


def likelihoods(cells: Cells, heldout: Heldout) -> Iterator[Estimate]:
    """NLL per token of base and arms on each held-out set, and arm less base."""
    for r in [*cells.bases, *cells.arms]:
        base = cells.base_of(r) if r.is_arm else None
        for lesson, stage in sorted(r.nll.items()):
            groups, note = heldout.groups("sft", lesson), f"heldout:sft:{lesson}"
            ours = heldout.scored(stage, "reply")
            yield estimate(r.slot, None, "nll_per_token", ll.nll_per_token(ours, groups), stage.key, None, note)
            if base and lesson in base.nll:
                found = ll.nll_difference(ours, heldout.scored(base.nll[lesson], "reply"), groups)
                yield estimate(r.slot, base.slot, "nll_difference", found, stage.key, None, note)


@dataclass(frozen=True)
class _Scores:
    """How one arm scores the pairs of one lesson: by each kind, the stage that it is measured against, if any."""

    stage: Stage
    against: dict[str, Stage | None]


def _kinds(cells: Cells, r: Responder, lesson: str) -> _Scores:
    """The kinds of preference score that `r` has: a base lacks over_base, an arm without DPO lacks implicit."""
    against: dict[str, Stage | None] = {"summed": None, "per_token": None}
    if r.is_arm:
        assert r.checkpoint
        base, start = cells.base_of(r), cells.start_of(r)
        if base and lesson in base.pairs:
            against["over_base"] = base.pairs[lesson]
        if "reference" in r.checkpoint.inputs and start and lesson in start.pairs:
            against["implicit"] = start.pairs[lesson]
    return _Scores(r.pairs[lesson], against)


def preferences(cells: Cells, heldout: Heldout) -> Iterator[Estimate]:
    """Preference accuracy by each kind of score, and its gain over what the arm's last step started from."""
    for r in [*cells.bases, *cells.arms]:
        for lesson in sorted(r.pairs):
            groups, note = heldout.groups("dpo", lesson), f"heldout:dpo:{lesson}"
            scores = _kinds(cells, r, lesson)
            for kind, reference in scores.against.items():
                ids, margins_N = heldout.margins(scores.stage, kind, reference)
                found = ll.preference_accuracy(margins_N, ids, groups)
                yield estimate(r.slot, None, f"preference_accuracy_{kind}", found, scores.stage.key, None, note)
            start = cells.start_of(r) if r.is_arm else None
            if start and lesson in start.pairs:
                yield from _gains(cells, heldout, r, start, lesson)


def _gains(cells: Cells, heldout: Heldout, r: Responder, start: Responder, lesson: str) -> Iterator[Estimate]:
    ours, theirs = _kinds(cells, r, lesson), _kinds(cells, start, lesson)
    groups = heldout.groups("dpo", lesson)
    for kind in ("summed", "per_token", "over_base"):
        if kind not in ours.against or kind not in theirs.against:
            continue
        ids, mine_N = heldout.margins(ours.stage, kind, ours.against[kind])
        other_ids, yours_N = heldout.margins(theirs.stage, kind, theirs.against[kind])
        at = {ident: i for i, ident in enumerate(other_ids)}
        both = [(i, at[ident]) for i, ident in enumerate(ids) if ident in at]
        mine, yours = mine_N[[i for i, _ in both]], yours_N[[k for _, k in both]]
        found = ll.accuracy_difference(mine, yours, tuple(ids[i] for i, _ in both), groups)
        measure = f"preference_accuracy_gain_{kind}"
        yield estimate(r.slot, start.slot, measure, found, ours.stage.key, None, f"heldout:dpo:{lesson}")


# ---------------------------------------------------------------- texts


def replies_of(responder: Responder, dialogues: dict[str, Dialogue], store: Store) -> dict[str, Reply]:
    """Its replies to `dialogues`, by dialogue id."""
    assert responder.replies, f"{responder.slot} has no replies"
    rows = store.get(responder.replies).read(Reply)
    return {r.dialogue_id: r for r in rows if r.sample == 0 and r.dialogue_id in dialogues}


def texts(cells: Cells, dialogues: dict[str, Dialogue], store: Store) -> Iterator[Estimate]:
    """Text metrics of everybody's replies as they came (before the cap of judging), and what judging had to cut."""
    replies = {r.slot: replies_of(r, dialogues, store) for r in cells.responders.values() if r.replies}
    for r in [*cells.bases, *cells.arms, *cells.others]:
        if r.replies and replies[r.slot]:
            yield from _own(r, replies[r.slot], dialogues, cells.cap_words)
            for other in [o for o in [cells.responders.get("human"), *cells.teachers_of(r)] if o and o is not r]:
                yield from _overlap(r, other, replies[r.slot], replies[other.slot], dialogues)


def _own(r: Responder, rows: dict[str, Reply], dialogues: dict[str, Dialogue], cap_words: int) -> Iterator[Estimate]:
    assert r.replies
    key, kept = r.replies.key, [x for x in rows.values() if x.text.strip()]
    clusters = label_codes([dialogues[x.dialogue_id].group for x in kept])
    for measure, of_text in PER_REPLY.items():
        values_N = np.array([of_text(x.text) for x in kept])
        found = (clustered_share if measure in SHARES else clustered_mean)(values_N, clusters)
        yield estimate(r.slot, None, measure, found, key, None)
    for measure, of_all in CORPUS.items():
        value = of_all([x.text for x in kept])
        yield estimate(
            r.slot, None, measure, Interval(value, None, None, None, len(kept), len(set(clusters))), key, None
        )
    yield from _treatment(r.slot, key, rows, dialogues, cap_words)


def _treatment(
    slot: str, key: str, rows: dict[str, Reply], dialogues: dict[str, Dialogue], cap: int
) -> Iterator[Estimate]:
    treated = [treat(x.text, cap, dialogues[d].turns[-1].content) for d, x in rows.items()]
    clusters = label_codes([dialogues[d].group for d in rows])
    for measure, flags in {
        "empty_share": [t.empty for t in treated],
        "capped_share": [t.capped for t in treated],
        "invented_turns_share": [t.turns_cut for t in treated],
        "not_stopped_share": [x.finish_reason != "stop" for x in rows.values()],
    }.items():
        yield estimate(slot, None, measure, clustered_share(np.array(flags, dtype=np.float64), clusters), key, None)
    judged = np.array([t.words for t in treated], dtype=np.float64)
    yield estimate(slot, None, "words_judged", clustered_mean(judged, clusters), key, None, f"capped at {cap}")


def _overlap(
    r: Responder, other: Responder, ours: dict[str, Reply], theirs: dict[str, Reply], dialogues: dict[str, Dialogue]
) -> Iterator[Estimate]:
    assert r.replies
    both = [d for d in ours if d in theirs and theirs[d].text.strip()]
    if not both:
        return
    pair = [ours[d].text for d in both], [theirs[d].text for d in both]
    clusters = label_codes([dialogues[d].group for d in both])
    score, signature = bleu(*pair)
    found = Interval(score, None, None, None, len(both), len(set(clusters)))
    yield estimate(r.slot, other.slot, "bleu_4", found, r.replies.key, None, signature)
    rouge = clustered_mean(np.array(rouge_l(*pair)), clusters)
    yield estimate(r.slot, other.slot, "rouge_l", rouge, r.replies.key, None, f"stemmer:{'yes' if STEMMER else 'no'}")
