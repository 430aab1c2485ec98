"""What is looked at as soon as the dialogues are read, before anybody is asked: whether what will be asked for can be
used at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from empathy.records import Split
from empathy.specs import DialoguesSpec, ExamplesSpec, Recorded, RepliesSpec
from empathy.stages import Stage

if TYPE_CHECKING:  # slow to load, and planning seldom needs them
    import polars as pl

    from empathy.candidates import Choice
    from empathy.store import Store

TO_ASK = ""
"""In the place of a recorded responder: replies that are still to be asked for."""


def recorded(replies: Stage | None) -> str | None:
    """Whose recorded replies a stage has; TO_ASK of any other, None without a stage."""
    if replies is None:
        return None
    spec = replies.spec
    assert isinstance(spec, RepliesSpec)
    return spec.responder.responder if isinstance(spec.responder, Recorded) else TO_ASK


def check(pending: Sequence[Stage], store: Store, later: Sequence[Stage] = ()) -> None:
    """`check_sides`, then `check_ratings`, of `pending` stages.

    `later` are those that the experiment needs beyond them: what these lack is told before anything is paid on the way
    to them, that is unless dialogues alone are pending.
    """
    if any(stage.kind != "dialogues" for stage in pending):
        pending = [*pending, *later]
    check_sides(pending, store)
    check_ratings(pending, store)


def check_sides(pending: Iterable[Stage], store: Store) -> None:
    """Raises ValueError where pending stages learn from, or are measured on, a side of the split that has no
    dialogues. Dialogues that are not made yet are not looked at."""
    sides: dict[Stage, set[Split]] = defaultdict(set)
    for stage in pending:
        if isinstance(stage.spec, ExamplesSpec | RepliesSpec) and stage.spec.split is not None:
            sides[stage.inputs["dialogues"]].add(stage.spec.split)
    for dialogues, wanted in sides.items():
        artifact = store.find(dialogues.kind, dialogues.key)
        lacking = sorted(wanted - artifact.counts.keys()) if artifact else []
        if artifact and lacking:
            raise ValueError(_no_side(dialogues, lacking[0], artifact.counts))


def _no_side(dialogues: Stage, side: Split, counts: Mapping[str, int]) -> str:
    spec = dialogues.spec
    assert isinstance(spec, DialoguesSpec)
    options = "".join(f", {name} = {value}" for name, value in spec.split.model_dump(exclude={"type"}).items())
    found = ", ".join(f"{name} {n:,}" for name, n in ({"train": 0, "test": 0} | dict(counts)).items())
    drawn = "seed" in type(spec.split).model_fields
    more = ", e.g. by another seed or fraction (a group is drawn as a whole)" if drawn else ""
    more += ", or raise data.limit" if spec.limit else ""
    return (
        f"data.split = {spec.split.type!r}{options}, data.limit = {spec.limit or 'none'}: no {side} dialogue is left "
        f"({found}); students learn from train and are measured on test: choose a split that has both{more}"
    )


def check_ratings(pending: Iterable[Stage], store: Store) -> None:
    """Raises ValueError, naming the first dialogue, where a pending set of examples selects by a rating that nobody
    gave. Sets whose dialogues are not made yet are not looked at, nor those that a judge's scores decide.

    Of each part of the dialogues a few columns are read, once for all sets: sets that differ in what is asked for alone
    (strategies, wordings) select alike.
    """
    sets: dict[Stage, dict[str, ExamplesSpec]] = defaultdict(dict)
    learned: dict[str, str | None] = {}
    for stage in pending:
        if isinstance(stage.spec, ExamplesSpec) and stage.spec.good is None:
            who = recorded(stage.inputs.get("replies"))
            ours = stage.spec
            alike = repr((ours.method, ours.objective, ours.purpose, ours.split, who))
            sets[stage.inputs["dialogues"]][alike], learned[alike] = ours, who
    for dialogues, specs in sets.items():
        asked = [(spec, learned[alike]) for alike, spec in specs.items()]
        _check(dialogues, asked, store)


def _check(dialogues: Stage, asked: list[tuple[ExamplesSpec, str | None]], store: Store) -> None:
    from empathy.candidates import Choice
    from empathy.cases import columns

    rated = [(Choice(spec), spec.split, who) for spec, who in asked]
    rated = [row for row in rated if any(name.endswith(("_rating", "_mark")) for name in row[0].needs)]
    artifact = store.find(dialogues.kind, dialogues.key) if rated else None
    if artifact is None:
        return
    names = ["id", "split", "human_reply", "ratings"]
    names += ["recorded"] if any(who for _, _, who in rated) else []
    for part in range(len(artifact.parts)):
        rows = columns(artifact, part, names)
        for choice, side, who in rated:
            _refuse_unrated(choice, rows.filter(split=side), who)


def _refuse_unrated(choice: Choice, dialogues: pl.DataFrame, learned: str | None) -> None:
    from empathy.cases import answers, joined, rated

    rows = joined(dialogues, None if learned is None else answers(dialogues, learned), None)
    for who in ("human", "learned"):
        rows = rated(rows, who)
    choice.refuse_unrated(rows)
