"""Assembling training sets: dialogues and replies of a store become SFT demonstrations and DPO preferences."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from empathy.columns import schema_of
from empathy.records import Dialogue, Reply
from empathy.screens import NAMES
from empathy.sources import Sample
from empathy.specs import DialoguesSpec, Direct, ExamplesSpec, RandomSplit, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store

SCREENS = NAMES
PART_ROWS = 20_000
MODEL = "m"


def dialogues_stage(rows: int) -> Stage:
    return Stage(DialoguesSpec(source="jsonl", digest=f"synthetic {rows}", split=RandomSplit(), part_rows=PART_ROWS))


def replies_stage(rows: int) -> Stage:
    return Stage(RepliesSpec(responder=Recorded(responder=MODEL)), {"dialogues": dialogues_stage(rows)})


def examples_stage(rows: int, objective: str, screens: tuple[str, ...]) -> Stage:
    spec = ExamplesSpec(method=Direct(), objective=objective, screens=screens)  # type: ignore[arg-type]
    return Stage(spec, {"dialogues": dialogues_stage(rows), "replies": replies_stage(rows)})


def _pool() -> dict[str, pl.Series]:
    found = [d for d in Sample().rows() if isinstance(d, Dialogue)]
    return {
        "said": pl.Series([t.content for d in found for t in d.turns if t.role == "user"]),
        "reply": pl.Series([str(d.human_reply) for d in found]),
        "situation": pl.Series([str(d.situation) for d in found]),
    }


def _table(frame: pl.DataFrame, cls: type) -> pa.Table:
    schema = schema_of(cls)
    return frame.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def _part(pool: dict[str, pl.Series], first: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Dialogues `first` and on, of one or three turns, rated as W&P's are (49 % and 65 % Good), and the replies."""
    rng = np.random.default_rng(first)

    def some(what: str) -> pl.Series:
        return pool[what].gather(rng.integers(0, len(pool[what]), rows))

    number = pl.int_range(first, first + rows, eager=True).cast(pl.String)
    last = some("said") + " That was " + number + " days ago."
    answer = some("reply") + " I counted " + number + " stars for you."
    again = rng.random(rows) < 0.01  # one reply of a hundred is a stock phrase
    answer = pl.select(pl.when(pl.lit(pl.Series(again))).then(some("reply")).otherwise(answer)).to_series()
    human, model = (
        pl.Series(np.where(rng.random(rows) < good, 3, 1 + rng.integers(0, 2, rows))) for good in (0.49, 0.65)
    )
    said = pl.DataFrame({"a": some("said"), "b": some("reply"), "c": last})

    def turn(role: str, column: str) -> pl.Expr:
        return pl.struct(role=pl.lit(role), content=column)

    one, three = (
        pl.concat_list(turn("user", "c")),
        pl.concat_list(turn("user", "a"), turn("assistant", "b"), turn("user", "c")),
    )

    def mapped(**values: str) -> pl.Expr:
        return pl.concat_list(pl.struct(key=pl.lit(k), value=v) for k, v in values.items())

    frame = said.with_columns(
        id="d" + number,
        group=(pl.int_range(first, first + rows, eager=True) // 10).cast(pl.String),
        split=pl.lit(pl.Series(np.where(rng.random(rows) < 0.125, "test", "train"))),
        situation=some("situation"),
        emotion=pl.lit("sad"),
        human_reply=some("reply") + " Number " + number + " counts.",
        human=human,
        model=model,
        answer=answer,
    ).with_columns(
        turns=pl.when(pl.lit(pl.Series(rng.random(rows) < 1 / 3))).then(three).otherwise(one),
        ratings=mapped(human="human", m="model"),
        recorded=mapped(m="answer"),
    )
    none = pl.lit(None, dtype=pl.String)
    replies = frame.select(
        dialogue_id="id",
        model=pl.lit(MODEL),
        text="answer",
        sample=pl.lit(0),
        finish_reason=pl.lit("stop"),
        model_served=none,
        tokens_in=pl.lit(None, dtype=pl.Int64),
        tokens_out=pl.lit(None, dtype=pl.Int64),
        request=none,
        dropped=none,
        turns=pl.lit([], dtype=frame.schema["turns"]),
        token_ids=pl.lit([], dtype=pl.List(pl.Int64)),
    )
    return _table(frame, Dialogue), _table(replies, Reply)


def generate(store: Store, rows: int) -> None:
    pool = _pool()
    writers = [store.writer(stage) for stage in (dialogues_stage(rows), replies_stage(rows))]
    for part, first in enumerate(range(0, rows, PART_ROWS)):
        for writer, table in zip(writers, _part(pool, first, min(PART_ROWS, rows - first)), strict=True):
            writer.write_part(part, table)
    for writer in writers:
        writer.commit()
