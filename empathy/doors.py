"""What is looked at as soon as the dialogues are known, before anybody is asked: whether what will be asked for can be
used at all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from empathy.records import BAD, GOOD, OKAY, Split
from empathy.specs import DialoguesSpec, ExamplesSpec, Recorded, RepliesSpec
from empathy.specs.sides import named
from empathy.stages import Stage

if TYPE_CHECKING:  # slow to load, and planning seldom needs them
    import polars as pl

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


@dataclass(frozen=True)
class Seen:
    """Dialogues that are known, all of them. `counts` by side of the split; `parts` gives tables with at least the
    columns that it is asked for, one dialogue a row (`empathy.cases`)."""

    counts: Mapping[str, int]
    parts: Callable[[Sequence[str]], Iterable[pl.DataFrame]]


Look = Callable[[Stage], Seen | None]
"""What is known of a dialogues stage."""


def in_store(store: Store) -> Look:
    """Looks at those that are made."""

    def look(dialogues: Stage) -> Seen | None:
        artifact = store.find(dialogues.kind, dialogues.key)
        if artifact is None:
            return None
        from empathy.cases import columns

        return Seen(
            artifact.counts, lambda names: (columns(artifact, part, names) for part in range(len(artifact.parts)))
        )

    return look


def check(pending: Sequence[Stage], look: Look, later: Sequence[Stage] = ()) -> None:
    """`check_sides`, then `check_sets`, of `pending` stages.

    `later` are those that the experiment needs beyond them: what these lack is told before anything is paid on the way
    to them, that is unless dialogues alone are pending.
    """
    if any(stage.kind != "dialogues" for stage in pending):
        pending = [*pending, *later]
    check_sides(pending, look)
    check_sets(pending, look)


def check_sides(pending: Iterable[Stage], look: Look) -> None:
    """Raises ValueError where pending stages learn from, or are measured on, a side of the split that has no
    dialogues. Dialogues that are not known are not looked at."""
    sides: dict[Stage, set[Split]] = defaultdict(set)
    for stage in pending:
        if isinstance(stage.spec, ExamplesSpec | RepliesSpec) and stage.spec.split is not None:
            sides[stage.inputs["dialogues"]].update(named(stage.spec.split))
    for dialogues, wanted in sides.items():
        seen = look(dialogues)
        lacking = sorted(wanted - seen.counts.keys()) if seen else []
        if seen and lacking:
            raise ValueError(_no_side(dialogues, lacking[0], seen.counts))


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


@dataclass
class _Set:
    """Pending sets that select alike: they differ in what is asked for alone (strategies, wordings)."""

    label: str
    spec: ExamplesSpec
    learned: str | None
    dialogues: int = 0
    """On its side."""
    selected: int = 0
    ratings: Counter[int | None] = field(default_factory=Counter)
    """Of the human replies on its side."""


def check_sets(pending: Iterable[Stage], look: Look) -> None:
    """Raises ValueError where a pending set of examples selects by a rating that nobody gave, naming the first
    dialogue, and where a training set selects no dialogue. Sets whose dialogues are not known are not looked at, nor
    those that a judge's scores decide, or a lot.

    Of each part of the dialogues a few columns are read, once for all sets.
    """
    sets: dict[Stage, dict[str, _Set]] = defaultdict(dict)
    for stage in pending:
        if isinstance(stage.spec, ExamplesSpec) and stage.spec.good is None:
            who = recorded(stage.inputs.get("replies"))
            ours = stage.spec
            alike = repr((ours.method, ours.objective, ours.purpose, ours.split, who))
            sets[stage.inputs["dialogues"]].setdefault(alike, _Set(stage.label, ours, who))
    for dialogues, asked in sets.items():
        _check(dialogues, list(asked.values()), look)


def _check(dialogues: Stage, asked: list[_Set], look: Look) -> None:
    from empathy.candidates import Choice

    rated = [(one, Choice(one.spec)) for one in asked]
    rated = [row for row in rated if any(name.endswith(("_rating", "_mark")) for name in row[1].needs)]
    seen = look(dialogues) if rated else None
    if seen is None:
        return
    names = ["id", "split", "human_reply", "ratings"]
    names += ["recorded"] if any(one.learned for one, _ in rated) else []
    for rows in seen.parts(names):
        for one, choice in rated:
            cases = _cases(rows.filter(split=one.spec.split), one.learned)
            one.dialogues += len(cases)
            one.selected += choice.selected(cases)
            one.ratings.update(cases["human_rating"].to_list())
    for one, _ in rated:
        if one.spec.purpose == "train" and not one.selected:
            raise ValueError(_none_selected(one))


def _cases(dialogues: pl.DataFrame, learned: str | None) -> pl.DataFrame:
    from empathy.cases import answers, joined, rated

    rows = joined(dialogues, None if learned is None else answers(dialogues, learned), None)
    for who in ("human", "learned"):
        rows = rated(rows, who)
    return rows


def _none_selected(one: _Set) -> str:
    named: tuple[tuple[int | None, str], ...] = ((GOOD, "Good"), (OKAY, "Okay"), (BAD, "Bad"), (None, "unrated"))
    found = ", ".join(f"{name} {one.ratings[rating]:,}" for rating, name in named)
    spec = one.spec
    return (
        f"{one.label}: of {one.dialogues:,} {spec.split} dialogues method {spec.method.type!r} selects none for "
        f"{spec.objective.upper()} (human replies: {found}); use data, or a split, with other ratings there, leave the "
        f"regimes with {spec.objective} out of grid.regime, or leave these arms out"
    )
