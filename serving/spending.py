"""What the replies in a ledger add up to, by who paid, model and day; millions of lines in seconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import orjson

from empathy.files import Files
from serving.journals import open_journals
from serving.ledger import is_reply

if TYPE_CHECKING:  # slow to load
    import polars as pl

UNKNOWN = "(unknown)"
"""Who paid for the lines of a time when names were not kept."""
BY = ("experiment", "provider", "model", "day", "price")


def spending(files: Files, damaged: Callable[[str, int], None] = lambda writer, lines: None) -> pl.DataFrame:
    """One row a (experiment, provider, model, day of UTC, price), with `requests`, `tokens_in`, `tokens_out` and
    `uncounted` (replies whose provider counted no tokens: they are in the requests alone).

    `price` is the share of the list price that was paid (batches). A reply that was bought twice counts twice. A
    damaged line is no reply: `damaged` is told of so many in a writer's journal.
    """
    import polars as pl

    sums = list(_sums(files, damaged))
    if not sums:
        return pl.DataFrame(schema=[*BY, "requests", "tokens_in", "tokens_out", "uncounted"])
    return pl.concat(sums).group_by(BY).sum().sort(BY)


def _sums(files: Files, damaged: Callable[[str, int], None]) -> Iterator[pl.DataFrame]:
    """The same of each block of a journal."""
    import polars as pl

    fields = {
        **dict.fromkeys(("key", "experiment", "provider", "model"), pl.String),
        **dict.fromkeys(("tokens_in", "tokens_out"), pl.Int64),
        **dict.fromkeys(("at", "price"), pl.Float64),
    }
    journals = open_journals(files, "")
    for writer in journals.writers():
        for _, block in journals.fetch(writer):
            there = block.splitlines(keepends=True)
            whole = [x for x in there if is_reply(x)]
            try:
                lines = pl.read_ndjson(io.BytesIO(b"".join(whole)), schema=fields, ignore_errors=True)
            except pl.exceptions.ComputeError:  # damaged inside a line: slower, and only then
                whole = [x for x in whole if _is_json(x)]
                lines = pl.read_ndjson(io.BytesIO(b"".join(whole)), schema=fields, ignore_errors=True)
            if len(whole) < len(there):
                damaged(writer, len(there) - len(whole))
            yield (
                lines.filter(
                    pl.col("key").is_not_null() & pl.col("provider").is_not_null() & pl.col("model").is_not_null(),
                    pl.col("at").is_between(0, 1e11),  # a day that there is
                )
                .with_columns(  # a count below nothing is none, and gives no dollars back
                    pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name) for name in ("tokens_in", "tokens_out")
                )
                .with_columns(
                    pl.col("experiment").fill_null(UNKNOWN),
                    pl.col("price").fill_null(1.0),
                    day=pl.from_epoch(pl.col("at").floor().cast(pl.Int64)).dt.date(),
                    uncounted=pl.col("tokens_in").is_null() | pl.col("tokens_out").is_null(),
                )
                .group_by(BY)
                .agg(
                    requests=pl.len().cast(pl.Int64),
                    tokens_in=pl.col("tokens_in").sum(),
                    tokens_out=pl.col("tokens_out").sum(),
                    uncounted=pl.col("uncounted").sum().cast(pl.Int64),
                )
            )


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
