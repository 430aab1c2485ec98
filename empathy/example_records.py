"""Chosen cases become the records that `empathy.columns` would write, and carry the ids that `Demonstration.of` and
`Preference.of` would give; column by column."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from empathy.columns import schema_of
from empathy.methods import Said
from empathy.records import Demonstration, Preference
from empathy.texts import as_json, content_ids, turns_as_json


def demonstrations(cases: pl.DataFrame, said: Sequence[Said], system: str | None) -> pa.Table:
    """One example a case and reply; one that a dialogue gives twice is there once."""
    rows = _prompted(cases, system).with_columns(
        reply=pl.concat_list([who for who, _ in said]), source=pl.lit([source for _, source in said])
    )
    rows = rows.explode("reply", "source")
    return _table(rows, ("reply",), Demonstration)


def preferences(cases: pl.DataFrame, said: Sequence[Said], system: str | None) -> pa.Table:
    """One pair a case; one that a dialogue gives twice is there once."""
    (chosen, chosen_source), (rejected, rejected_source) = said
    sources = {"chosen_source": pl.lit(chosen_source), "rejected_source": pl.lit(rejected_source)}
    rows = _prompted(cases, system).with_columns(chosen=chosen, rejected=rejected, **sources)
    return _table(rows, ("chosen", "rejected"), Preference)


def _prompted(cases: pl.DataFrame, system: str | None) -> pl.DataFrame:
    """What the student is shown: the dialogue alone, after a system message where the experiment gives one."""
    messages = pl.col("turns")
    if system:
        first = pl.lit([{"role": "system", "content": system}], dtype=cases.schema["turns"])
        messages = pl.concat_list(first, messages)
    rows = cases.with_columns(messages=messages, dialogue_id="id")
    return rows.with_columns(prompt=turns_as_json(rows["messages"]))


def _table(rows: pl.DataFrame, texts: Sequence[str], cls: type) -> pa.Table:
    json = [rows["prompt"], *(as_json(rows[text]).alias(text) for text in texts)]
    contents = pl.DataFrame(json).select(pl.format("[{}]", pl.concat_str(pl.all(), separator=","))).to_series()
    rows = rows.with_columns(id=content_ids(contents)).unique(["number", "id"], keep="first", maintain_order=True)
    schema = schema_of(cls)
    return rows.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
