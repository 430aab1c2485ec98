"""Assembling training sets from synthetic dialogues with ratings, beside a polars script of the same join.

Ways: `screened` is the stage with every screen, near-duplicates included, in one process; `plain` the stage without
screens; `ray` what `screened` does, sharded over two processes (Ray is up already); `polars` the script that an expert
would write: scan, join, select by rating, write as many rows to one parquet file. It verifies no hash, gives no ids,
looks for no leaks and screens nothing. A row is a dialogue. Every measurement is a process of its own.
`read` is the stage before: lines of JSON become dialogues, row by row, in two passes (test dialogues first).

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.common import report, seconds
from benchmarks.synthetic import MODEL, dialogues_stage, generate, lines, replies_stage
from cluster.profile import Profile
from empathy import dialogues, examples
from empathy.records import GOOD
from empathy.screens import NAMES
from empathy.sources import Jsonl
from empathy.specs import Direct, ExamplesSpec, RandomSplit
from empathy.stages import Stage
from empathy.store import Store

PACKAGES = ("polars", "pyarrow", "numpy", "ray")
WAYS = ("screened", "plain", "ray", "polars")
READ = "read"
MIB = 1 << 20

# ---------------------------------------------------------------- the ways


def examples_stage(rows: int, objective: str, screens: tuple[str, ...]) -> Stage:
    spec = ExamplesSpec.model_validate({"method": Direct(), "objective": objective, "screens": screens})
    return Stage(spec, {"dialogues": dialogues_stage(rows), "replies": replies_stage(rows)})


def read(folder: Path, rows: int) -> float:
    """Seconds of the dialogues stage on a file of lines."""
    store, file = Store.open(str(folder / "store")), folder / "lines.jsonl"
    lines(rows, file)
    stage = dialogues.stage(Jsonl(path=str(file)), RandomSplit(), part_rows=20_000)
    store.discard(stage.kind, stage.key)
    return seconds(lambda: dialogues.make(stage, store, store.writer(stage)))


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
    folder.mkdir(parents=True, exist_ok=True)
    store, out = Store.open(str(folder / "store")), folder / "polars.parquet"
    stage, worker_mib = examples_stage(rows, objective, () if way == "plain" else NAMES), 0.0
    if way == READ:
        wall_s, made = read(folder, rows), 0
    elif way == "polars":
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


def reading(folder: Path, rows: int) -> dict[str, Any]:
    """The row of the stage before."""
    found = apart(READ, folder, rows, "sft")
    row = {"rows": rows, "set": "dialogues", "way": READ, "examples": 0, "wall_s": found["wall_s"]}
    rate, mib = round(rows / found["wall_s"]), round(found["driver_mib"])
    return row | {"rows_per_s": rate, "over_polars": "", "driver_mib": mib, "worker_mib": 0, "repeats": 1}


def figures(table: list[dict[str, Any]]) -> dict[str, float]:
    """NAME_ROWS_SET of each way, for the line at the end."""
    found = {}
    for row in table:
        of = f"{row['way']}_{row['rows']}_{row['set']}"
        found[f"{of}_rows_per_s"] = float(row["rows_per_s"])
        if row["way"] != READ:
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
    parser.add_argument("--way", choices=[*WAYS, READ], help="measure this alone, once, in --folder")
    options = parser.parse_args()
    sizes = options.rows or ([2_000, 200_000, 1_000_000] if options.quick else [2_000, 1_000_000, 10_000_000])
    if options.way and options.folder is None:
        parser.error("--way: measures on dialogues that are there; name their --folder")
    if options.way:
        print(json.dumps(measure(options.way, options.folder, sizes[0], options.objective[0])))
        return
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        table = [
            row
            for rows in sizes
            for objective in options.objective
            for row in compared(folder, rows, objective, options.repeats or (1 if rows >= 5_000_000 else 3))
        ]
        table += [reading(folder, rows) for rows in ([] if options.rows else [20_000, 200_000])]
    report("assemble", table, figures(table) | {"minutes": (time.monotonic() - began_s) / 60}, PACKAGES)


if __name__ == "__main__":
    main()
