"""Assembling training sets from synthetic dialogues with ratings, beside a polars script of the same join.

Ways: `screened` is the stage with every screen, near-duplicates included, in one process; `plain` the stage without
screens; `ray` what `screened` does, sharded over two processes (Ray is up already); `polars` the script that an expert
would write: scan, join, select by rating, write as many rows to one parquet file. It verifies no hash, gives no ids,
looks for no leaks and screens nothing. A row is a dialogue. Every measurement is a process of its own.

    python -m benchmarks.assemble            2,000, 1 million and 10 million dialogues (half an hour on two cores)
    python -m benchmarks.assemble --quick    2,000, 200,000 and 1 million
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.common import report, seconds
from cluster.profile import Profile
from empathy import examples
from empathy.columns import schema_of
from empathy.records import GOOD, Dialogue, Reply
from empathy.screens import NAMES
from empathy.sources import Sample
from empathy.specs import DialoguesSpec, Direct, ExamplesSpec, RandomSplit, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store

PACKAGES = ("polars", "pyarrow", "numpy", "ray")
WAYS = ("screened", "plain", "ray", "polars")
MODEL = "m"
MIB = 1 << 20

# ---------------------------------------------------------------- synthetic dialogues


def dialogues_stage(rows: int) -> Stage:
    """Small sets in parts of the default size, large ones in parts of 20,000."""
    part_rows = 256 if rows < 100_000 else 20_000
    return Stage(DialoguesSpec(source="jsonl", digest=f"synthetic {rows}", split=RandomSplit(), part_rows=part_rows))


def replies_stage(rows: int) -> Stage:
    return Stage(RepliesSpec(responder=Recorded(responder=MODEL)), {"dialogues": dialogues_stage(rows)})


def examples_stage(rows: int, objective: str, screens: tuple[str, ...]) -> Stage:
    spec = ExamplesSpec.model_validate({"method": Direct(), "objective": objective, "screens": screens})
    return Stage(spec, {"dialogues": dialogues_stage(rows), "replies": replies_stage(rows)})


def sentences() -> dict[str, pl.Series]:
    """Turns, replies and situations of the dialogues that ship with the package."""
    found = [d for d in Sample().rows() if isinstance(d, Dialogue)]
    return {
        "said": pl.Series([t.content for d in found for t in d.turns if t.role == "user"]),
        "reply": pl.Series([str(d.human_reply) for d in found]),
        "situation": pl.Series([str(d.situation) for d in found]),
    }


def _table(frame: pl.DataFrame, cls: type) -> pa.Table:
    schema = schema_of(cls)
    return frame.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def part(pool: Mapping[str, pl.Series], first: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Dialogues from number `first` on and the replies to them.

    A third has three turns; an eighth is for the test. People are Good in 49 % and the model in 65 %, as in W&P. One
    reply of the model in a hundred is a stock phrase, and so a near-duplicate of others.
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
            "own": some("reply") + " I counted " + number + " stars for you.",
            "stock": some("reply"),
            "is_stock": rng.random(rows) < 0.01,
            "is_long": rng.random(rows) < 1 / 3,
            "human": rated(0.49),
            "model": rated(0.65),
        }
    )
    one, three = [turn("user", "last")], [turn("user", "before"), turn("assistant", "answered"), turn("user", "last")]
    frame = frame.with_columns(
        turns=pl.when("is_long").then(pl.concat_list(three)).otherwise(pl.concat_list(one)),
        text=pl.when("is_stock").then("stock").otherwise("own"),
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


# ---------------------------------------------------------------- the ways


def by_polars(store: Store, rows: int, objective: str, out: Path) -> None:
    """Scan, join, select, write."""

    def scan(stage: Stage) -> pl.LazyFrame:
        return pl.scan_parquet(f"{store.url}/{stage.kind}/{stage.key}/*.parquet")

    def rating(who: str) -> pl.Expr:
        entry = pl.element().struct
        return pl.col("ratings").list.eval(entry.field("value").filter(entry.field("key") == who)).list.first()

    replies = scan(replies_stage(rows)).select("dialogue_id", "text")
    found = scan(dialogues_stage(rows)).filter(pl.col("split") == "train", rating(MODEL) == GOOD)
    found = found.filter(rating("human") == GOOD if objective == "sft" else rating("human") < GOOD)
    found = found.join(replies, left_on="id", right_on="dialogue_id")
    common = {"dialogue_id": "id", "group": "group", "messages": "turns"}
    if objective == "sft":
        shown = found.select(**common, reply=pl.concat_list("human_reply", "text"), source=pl.lit(["human", "teacher"]))
        shown = shown.explode("reply", "source")
    else:
        sources = {"chosen_source": pl.lit("teacher"), "rejected_source": pl.lit("human")}
        shown = found.select(**common, chosen="text", rejected="human_reply", **sources)
    shown.sink_parquet(out, compression="zstd")


@contextmanager
def workers_watched() -> Iterator[Callable[[], float]]:
    """Inside, the largest memory (MiB, resident) of any of Ray's workers that this process has is followed."""
    import psutil

    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        peak = max(peak, process.memory_info().rss)
                except psutil.NoSuchProcess:  # it has just ended
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak / MIB
    finally:
        over.set()
        thread.join()


def measure(way: str, folder: Path, rows: int, objective: str) -> dict[str, float]:
    """Seconds, examples made, and peak memory (MiB, resident) of this process and of the largest worker."""
    store, out = Store.open(str(folder / "store")), folder / "polars.parquet"
    stage, worker_mib = examples_stage(rows, objective, () if way == "plain" else NAMES), 0.0
    if way == "polars":
        wall_s = seconds(lambda: by_polars(store, rows, objective, out))
        made = pl.scan_parquet(out).select(pl.len()).collect().item()
        out.unlink()
    else:
        store.discard(stage.kind, stage.key)
        if way == "ray":
            from cluster.session import ray_session
            from cluster.steps import assembling

            profile = Profile.model_validate({"ray": {"cpus": 4}})
            with ray_session(profile), workers_watched() as peak:
                wall_s = seconds(lambda: assembling.make(stage, store, profile))
                worker_mib = peak()
        else:
            wall_s = seconds(lambda: examples.make(stage, store, store.writer(stage)))
        made = store.get(stage).rows
    driver_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall_s": wall_s, "examples": made, "driver_mib": driver_mib, "worker_mib": worker_mib}


def apart(way: str, folder: Path, rows: int, objective: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.assemble", "--way", way, "--folder", str(folder)]
    words += ["--rows", str(rows), "--objective", objective]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---------------------------------------------------------------- tables


def compared(folder: Path, rows: int, objective: str, repeats: int) -> list[dict[str, Any]]:
    """A row a way: medians over interleaved repeats."""
    store = Store.open(str(folder / "store"))
    if not store.done(replies_stage(rows)):
        print(f"generating {rows:,} dialogues: {seconds(lambda: generate(store, rows)):.0f} s", flush=True)
    ways = [way for way in WAYS if way != "ray" or rows >= 100_000]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            found[way].append(apart(way, folder, rows, objective))
            print(f"{rows:,} {objective} {way}: {found[way][-1]['wall_s']:.2f} s", flush=True)
    assert found["plain"][0]["examples"] == found["polars"][0]["examples"], "the script selects other examples"
    median = {way: {m: statistics.median(x[m] for x in found[way]) for m in found[way][0]} for way in ways}
    return [
        {
            "rows": rows,
            "set": objective,
            "way": way,
            "examples": int(of["examples"]),
            "wall_s": of["wall_s"],
            "rows_per_s": round(rows / of["wall_s"]),
            "over_polars": statistics.median(
                a["wall_s"] / b["wall_s"] for a, b in zip(found[way], found["polars"], strict=True)
            ),
            "driver_mib": round(of["driver_mib"]),
            "worker_mib": round(of["worker_mib"]),
            "repeats": repeats,
        }
        for way, of in median.items()
    ]


def figures(table: list[dict[str, Any]]) -> dict[str, float]:
    """NAME_ROWS_SET of each way, for the line at the end."""
    found = {}
    for row in table:
        of = f"{row['way']}_{row['rows']}_{row['set']}"
        found[f"{of}_rows_per_s"] = float(row["rows_per_s"])
        found[f"{of}_over_polars"] = row["over_polars"]
        found[f"{of}_driver_mib"] = float(row["driver_mib"])
        if row["way"] == "ray":
            found[f"{of}_worker_mib"] = float(row["worker_mib"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sets")
    parser.add_argument("--rows", type=int, nargs="*", help="sizes, instead of the usual ones")
    parser.add_argument("--objective", nargs="*", default=["sft", "dpo"], choices=["sft", "dpo"])
    parser.add_argument("--repeats", type=int, help="by default 3, and 1 from 5 million rows on")
    parser.add_argument("--folder", type=Path, help="where the dialogues are, or are put and kept")
    parser.add_argument("--way", choices=WAYS, help="measure this alone, once, and print it as JSON")
    options = parser.parse_args()
    sizes = options.rows or ([2_000, 200_000, 1_000_000] if options.quick else [2_000, 1_000_000, 10_000_000])
    if options.way:
        print(json.dumps(measure(options.way, options.folder, sizes[0], options.objective[0])))
        return
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        table = [
            row
            for rows in sizes
            for objective in options.objective
            for row in compared(folder, rows, objective, options.repeats or (1 if rows >= 5_000_000 else 3))
        ]
    report("assemble", table, figures(table) | {"minutes": (time.monotonic() - began_s) / 60}, PACKAGES)


if __name__ == "__main__":
    main()
