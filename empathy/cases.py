"""The table that examples are chosen from: one row a dialogue of the asked side and reply to learn, in the order of the
dialogues and samples, joined by dialogue id. A dialogue that nobody answered has one row.

    number sample                 of the dialogue in the whole artifact, from 0; of the reply
    id group turns situation      of the dialogue
    human learned initial         replies, null where there are none to be used
    why_no_learned why_no_initial what happened to a reply that was dropped
    human_rating human_mark learned_rating learned_mark    see `empathy.methods.case`
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from empathy.artifact import Artifact
from empathy.columns import schema_of
from empathy.records import GOOD, HUMAN, OKAY, Dialogue
from empathy.specs import ExamplesSpec

_DIALOGUE = ("id", "group", "turns", "split", "situation", "human_reply", "ratings", "recorded")
_SHOWN = ("group", "turns", "situation")
_REPLY = ("dialogue_id", "model", "text", "sample", "dropped")


def columns(artifact: Artifact, part: int, names: Sequence[str]) -> pl.DataFrame:
    """Some columns of one part."""
    return pl.read_parquet(artifact.parquet(part), columns=list(names))


def read(
    spec: ExamplesSpec,
    inputs: Mapping[str, Artifact],
    part: int,
    first_number: int,
    needs: Collection[str],
    shown: bool = True,
) -> pl.DataFrame:
    """The table of one part. `first_number` dialogues are in the parts before it. Of ratings and marks only those that
    `needs` names are there, and what examples show (group, turns, situation) only if `shown`."""
    unread = set() if shown else set(_SHOWN)
    if spec.good is not None or not _about("learned", needs):
        unread.add("recorded")
    names = [name for name in _DIALOGUE if name not in unread]
    dialogues = columns(inputs["dialogues"], part, names).with_row_index("number", first_number)
    dialogues = dialogues.filter(pl.col("split") == spec.split)
    learned, initial = (columns(inputs[n], part, _REPLY) if n in inputs else None for n in ("replies", "initial"))
    rows = joined(dialogues, learned, initial)
    for who in ("human", "learned"):
        if _about(who, needs):
            rows = rated(rows, who) if spec.good is None else _scored(rows, who, inputs, part, spec.good)
    return rows


def joined(dialogues: pl.DataFrame, learned: pl.DataFrame | None, initial: pl.DataFrame | None) -> pl.DataFrame:
    """The table, without ratings, of dialogues and replies (columns of `Dialogue` and `Reply`)."""
    rows = _with(dialogues.rename({"human_reply": "human"}), _told(learned, "learned"))
    return _with(rows, _told(initial, "initial").drop("model", "text", "sample").unique("dialogue_id", keep="first"))


def table(dialogues: Iterable[Dialogue]) -> pl.DataFrame:
    """Dialogues that are in no store yet, as `columns` has those of an artifact; for plans, so by polars alone: the
    first array that pyarrow makes of Python values loads pandas, which takes most of a second."""
    rows, types = list(dialogues), pl.Schema(schema_of(Dialogue))
    found: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _DIALOGUE}
    found["turns"] = [[turn.as_message() for turn in turns] for turns in found["turns"]]
    for name in ("ratings", "recorded"):
        found[name] = [[{"key": key, "value": held[key]} for key in sorted(held)] for held in found[name]]
    return pl.DataFrame(found, {name: types[name] for name in found})


def answers(dialogues: pl.DataFrame, responder: str) -> pl.DataFrame:
    """What a responder of the data said to each dialogue, as replies; of nobody in particular ("") any text: it is
    still to be asked for."""
    if not responder:
        said: pl.Expr = pl.lit("to be asked for")
    else:
        said = pl.col("human_reply") if responder == HUMAN else _value("recorded", responder)
    rows = dialogues.select(dialogue_id="id", text=said.cast(pl.String))
    return rows.with_columns(
        model=pl.lit(responder or None, pl.String),
        sample=pl.lit(0, pl.Int64),
        dropped=pl.when(pl.col("text").is_null()).then(pl.lit("not_recorded")),
    )


def _about(who: str, needs: Collection[str]) -> bool:
    return f"{who}_rating" in needs or f"{who}_mark" in needs


def _with(rows: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    return rows.join(more, left_on="id", right_on="dialogue_id", how="left", maintain_order="left_right")


def _told(replies: pl.DataFrame | None, who: str) -> pl.DataFrame:
    """Replies in the order of samples, with the text to be used, or why there is none."""
    if replies is None:
        replies = pl.DataFrame(schema={name: pl.Int64 if name == "sample" else pl.String for name in _REPLY})
    reason = pl.col("dropped").str.split(":").list.first()
    why = pl.when(reason != "").then(reason)
    told = {who: pl.when(why.is_null()).then("text"), f"why_no_{who}": why}
    ordered = replies.select(_REPLY).sort("sample", maintain_order=True)
    return ordered.with_columns(**told).drop("dropped")


def _value(column: str, key: str) -> pl.Expr:
    """What the dicts in `column` hold under `key`, null where they do not."""
    entry = pl.element().struct
    return pl.col(column).list.eval(entry.field("value").filter(entry.field("key") == key)).list.first()


def rated(rows: pl.DataFrame, who: str) -> pl.DataFrame:
    """People's ratings."""
    rating = _of_model(rows["model"]) if who != HUMAN else pl.when(pl.col("human").is_not_null()).then(_of(HUMAN))
    return rows.with_columns(rating.alias(f"{who}_rating"), rating.alias(f"{who}_mark"))


def _of(name: str) -> pl.Expr:
    return _value("ratings", name)


def _of_model(models: pl.Series) -> pl.Expr:
    """The rating of the learned reply: it belongs to the text that was rated, for a model asked anew may be called as
    one that was rated."""
    found: list[pl.Expr] = [pl.lit(None, dtype=pl.Int64)]
    for model in sorted(models.drop_nulls().unique()):
        rated = pl.col("human") if model == HUMAN else _value("recorded", model)
        found.append(pl.when((pl.col("model") == model) & (pl.col("text") == rated)).then(_of(model)))
    return pl.coalesce(found)


def _scored(rows: pl.DataFrame, who: str, inputs: Mapping[str, Artifact], part: int, good: float) -> pl.DataFrame:
    """A judge's scores: Good from `good` on, else Okay. A person's reply has no samples."""
    ours, theirs = (["id"], ["dialogue_id"]) if who == HUMAN else (["id", "sample"], ["dialogue_id", "sample"])
    scores = columns(inputs[f"scores:{who}"], part, [*theirs, "overall"]).rename({"overall": f"{who}_mark"})
    rows = rows.join(scores, left_on=ours, right_on=theirs, how="left", maintain_order="left")
    mark = pl.col(f"{who}_mark")
    return rows.with_columns(pl.when(mark >= good).then(GOOD).when(mark < good).then(OKAY).alias(f"{who}_rating"))
