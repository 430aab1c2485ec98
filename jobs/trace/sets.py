"""Which training and held-out sets one dialogue entered, by whose ratings, or why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from empathy.lower import Lowered
from empathy.records import HUMAN, Demonstration, Preference, Score
from empathy.report.cells import in_short, told
from empathy.report.drops import learned_from
from empathy.specs import ExamplesSpec
from empathy.stages import Stage, walk
from jobs.trace.life import FEW, Life, wrapped

RATINGS = {1: "1 Bad", 2: "2 Okay", 3: "3 Good"}


def sets(life: Life, lowered: Lowered) -> Iterator[str]:
    """Each set of the dialogue's side of the split once, with the arms that learn from it."""
    yield "SETS OF EXAMPLES"
    learners = _learners(lowered)
    for stage in walk([lowered.report]):
        spec = stage.spec
        about = stage.inputs.get("dialogues")
        if isinstance(spec, ExamplesSpec) and about == lowered.report.inputs["dialogues"]:
            if spec.split != life.dialogue.split:
                continue  # the other side of the split: said once, by the dialogue's own side
            arms = learners.get(stage.key, [])
            whom = f" ({', '.join(arms) if len(arms) <= FEW else f'{len(arms)} arms'})" if arms else ""
            yield from wrapped(f"{stage.label}{whom}", "; ".join(_fate(life, stage, spec)))


def _learners(lowered: Lowered) -> dict[str, list[str]]:
    """The arms that learn from each set, in short, by the set's key."""
    names, found = lowered.report.locator, defaultdict(list)
    for cell in lowered.cells:
        for stage in learned_from(cell.checkpoint):
            found[stage.key].append(in_short(cell.name, told(names) - {"method", "strategy", "teacher", "wording"}))
    return found


def _fate(life: Life, stage: Stage, spec: ExamplesSpec) -> Iterator[str]:
    """What the set has of this dialogue, what it dropped and why, and the ratings that decided."""
    if spec.objective == "sft":
        shown = life.of(stage, Demonstration)
        does = "learns" if spec.split == "train" else "scored on"
        said = [f"{does} the {e.source} reply" for e in shown or ()]
    else:
        pairs = life.of(stage, Preference)
        shown, said = (
            None if pairs is None else [],
            [f"{p.chosen_source} over {p.rejected_source}" for p in pairs or ()],
        )
    if shown is None:
        yield "not made yet"
        return
    if said:
        yield ", ".join(said)
    dropped = life.store.get(stage).meta.get("dropped")
    reasons = _reasons(life, stage) if dropped or not said else []
    if reasons:
        yield f"dropped: {', '.join(reasons)}"
    elif not said:
        yield "not selected by its method"
    if ratings := list(_ratings(life, stage)):
        yield ", ".join(ratings)


def _reasons(life: Life, stage: Stage) -> list[str]:
    """Why a finished set lacks examples of this dialogue: asked of the method and the screens again."""
    from empathy import examples  # polars is slow to load

    return list(dict.fromkeys(examples.why_none(stage, life.store, life.part, life.ident)))


# ---------------------------------------------------------------- ratings


def _ratings(life: Life, stage: Stage) -> Iterator[str]:
    """The ratings by which the method decides: people's, or a judge's score and the threshold of a Good reply."""
    from empathy import cases
    from empathy.report import ratings

    whose = list(ratings.deciding(stage))
    inputs = {name: life.store.find(s.kind, s.key) for name, s in stage.inputs.items()} if whose else {}
    if not whose or not all(inputs.values()):
        return
    assert isinstance(stage.spec, ExamplesSpec)
    there: dict[str, Any] = inputs
    rows = cases.read(stage.spec, there, life.part, 0, {f"{who}_mark" for who in whose})
    mine = [row for row in rows.iter_rows(named=True) if row["id"] == life.ident]
    for who in whose:
        for row in mine if who != HUMAN else mine[:1]:
            if row[who] is not None:
                yield _rated(life, stage, who, row)
    if stage.spec.good is not None:
        yield f"Good from {stage.spec.good:g}"


def _rated(life: Life, stage: Stage, who: str, row: dict[str, Any]) -> str:
    """ "human reply 2.33 of 5", "teacher reply #1 unrated"."""
    name = "human reply" if who == HUMAN else "teacher reply" + (f" #{row['sample']}" if row["sample"] else "")
    mark, scores = row[f"{who}_mark"], stage.inputs.get(f"scores:{who}")
    assert isinstance(stage.spec, ExamplesSpec)
    if scores is None:
        forgiven = " (taken as Good)" if getattr(stage.spec.method, "unrated_is_good", False) else ""
        return f"{name} unrated{forgiven}" if mark is None else f"{name} {RATINGS[int(mark)]}"
    if mark is not None:
        return f"{name} {mark:.2f} of 5"
    sample = 0 if who == HUMAN else row["sample"]
    status = next((s.status for s in life.of(scores, Score) or () if s.sample == sample), "not scored")
    return f"{name} unrated ({status})"
