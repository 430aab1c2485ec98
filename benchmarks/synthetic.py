"""Synthetic dialogues with ratings, straight into a store: the sentences of the sample in new company, as many as you
like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from empathy.columns import from_table, schema_of
from empathy.records import GOOD, Dialogue, Reply
from empathy.sources import Sample
from empathy.specs import DialoguesSpec, RandomSplit, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store

MODEL = "m"


def dialogues_stage(rows: int) -> Stage:
    """Small sets in parts of the default size, large ones in parts of 20,000."""
    part_rows = 256 if rows < 100_000 else 20_000
    return Stage(DialoguesSpec(source="jsonl", digest=f"synthetic {rows}", split=RandomSplit(), part_rows=part_rows))


def replies_stage(rows: int) -> Stage:
    return Stage(RepliesSpec(responder=Recorded(responder=MODEL)), {"dialogues": dialogues_stage(rows)})


def sentences() -> dict[str, pl.Series]:
    """Turns, replies and situations of the dialogues that ship with the package."""
    found = [d for d in Sample().rows() if isinstance(d, Dialogue)]
    return {
        "said": pl.Series([t.content for d in found for t in d.turns if t.role == "user"]),
        "reply": pl.Series([str(d.human_reply) for d in found]),
        "situation": pl.Series([str(d.situation) for d in found]),
        "piece": pl.Series(sorted({piece for d in found for piece in _pieces(str(d.human_reply))})),
    }


def _pieces(text: str, words: int = 4) -> list[str]:
    found = text.split()
    return [" ".join(found[k : k + words]) for k in range(0, len(found), words)]


def _table(frame: pl.DataFrame, cls: type) -> pa.Table:
    schema = schema_of(cls)
    return frame.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def part(pool: Mapping[str, pl.Series], first: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Dialogues from number `first` on and the replies to them.

    A third has three turns; an eighth is for the test. People are Good in 49 % and the model in 65 %, as in W&P. The
    model's replies are made of six pieces of four words and a sentence that all share. One in a hundred is a stock
    phrase instead, and so a near-duplicate of others: half of these are equal, the others have a number in them.
    """
    rng = np.random.default_rng(first)

    def some(what: str) -> pl.Series:
        return pool[what].gather(rng.integers(0, len(pool[what]), rows))

    def rated(good: float) -> pl.Series:
        return pl.Series(np.where(rng.random(rows) < good, GOOD, 1 + rng.integers(0, 2, rows)))

    def turn(role: str, column: str) -> pl.Expr:
        return pl.struct(role=pl.lit(role), content=column)

    def mapped(**values: str) -> pl.Expr:
        return pl.concat_list(pl.struct(key=pl.lit(k), value=v) for k, v in values.items())

    index = pl.int_range(first, first + rows, eager=True)
    number = index.cast(pl.String)
    frame = pl.DataFrame(
        {
            "id": "d" + number,
            "group": (index // 10).cast(pl.String),
            "split": pl.Series(rng.random(rows) < 1 / 8).replace_strict({True: "test", False: "train"}),
            "situation": some("situation"),
            "human_reply": some("reply") + " Number " + number + " counts.",
            "before": some("said"),
            "answered": some("reply"),
            "last": some("said") + " That was " + number + " days ago.",
            "own": pl.select(pl.concat_str([some("piece") for _ in range(6)], separator=" ")).to_series()
            + " I counted "
            + number
            + " stars for you.",
            "stock": some("reply"),
            "numbered": some("reply") + " Ring " + number + " times.",
            "is_stock": rng.random(rows) < 0.005,
            "is_numbered": rng.random(rows) < 0.005,
            "is_long": rng.random(rows) < 1 / 3,
            "human": rated(0.49),
            "model": rated(0.65),
        }
    )
    one, three = [turn("user", "last")], [turn("user", "before"), turn("assistant", "answered"), turn("user", "last")]
    frame = frame.with_columns(
        turns=pl.when("is_long").then(pl.concat_list(three)).otherwise(pl.concat_list(one)),
        text=pl.when("is_stock").then("stock").when("is_numbered").then("numbered").otherwise("own"),
        emotion=pl.lit("sad"),
    ).with_columns(ratings=mapped(human="human", **{MODEL: "model"}), recorded=mapped(**{MODEL: "text"}))
    same: dict[str, Any] = {"model": MODEL, "sample": 0, "finish_reason": "stop", "turns": [], "token_ids": []}
    unknown = {name: None for name in schema_of(Reply).names if name not in {*same, "dialogue_id", "text"}}
    replies = frame.select("text", dialogue_id="id").with_columns(
        pl.lit(value, dtype=pl.List(pl.Int64) if name == "token_ids" else None).alias(name)
        for name, value in {**same, **unknown}.items()
    )
    return _table(frame, Dialogue), _table(replies.with_columns(turns=pl.lit([], dtype=frame["turns"].dtype)), Reply)


def generate(store: Store, rows: int) -> None:
    """Both artifacts, part by part."""
    stages, pool = (dialogues_stage(rows), replies_stage(rows)), sentences()
    writers, part_rows = [store.writer(stage) for stage in stages], stages[0].identity["spec"]["part_rows"]
    for k, first in enumerate(range(0, rows, part_rows)):
        for writer, table in zip(writers, part(pool, first, min(part_rows, rows - first)), strict=True):
            writer.write_part(k, table)
    for writer in writers:
        writer.commit()


def lines(rows: int, file: Path) -> None:
    """The same dialogues as lines of JSON."""
    pool = sentences()
    with open(file, "w", encoding="utf-8") as out:
        for first in range(0, rows, 20_000):
            for d in from_table(part(pool, first, min(20_000, rows - first))[0], Dialogue):
                known = {name: getattr(d, name) for name in ("id", "group", "situation", "human_reply", "ratings")}
                turns = [turn.as_message() for turn in d.turns]
                out.write(json.dumps({**known, "turns": turns, "recorded": d.recorded}) + "\n")
