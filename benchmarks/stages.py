"""What a stage and a part cost over the same work done bare, and what planning costs.

    python -m benchmarks.stages [--quick] [--store URL --endpoint URL]

A part through the store is encoded, hashed, synced to disk, marked finished by a conditional put and listed in a
manifest. Bare is `pyarrow.parquet.write_table` of the same rows; synced, it also calls fsync, as anything must that may
not be lost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common import interleaved, median_ratio, report, seconds
from empathy.columns import from_table, schema_of, to_table
from empathy.records import Reply
from empathy.specs import DialoguesSpec, PaperSplit, RepliesSpec, ReportSpec, Teacher
from empathy.stages import Stage, missing, walk
from empathy.store import Store

ROWS = 256
REPLIES = [
    Reply(f"dialogue-{k}", "a-model", f"That sounds hard. {k} " * 10, tokens_in=200, tokens_out=40) for k in range(ROWS)
]
PACKAGES = ("pyarrow", "pydantic", "boto3")


def through_store(store: Store, stages: int, parts: int) -> None:
    """`stages` artifacts of `parts` parts each, written and committed."""
    for k in range(stages):
        writer = store.writer(Stage(ReportSpec(seed=k), locator={"run": uuid.uuid4().hex}))
        for part in range(parts):
            writer.write_records(part, REPLIES, Reply)
        writer.commit()
        store.discard("report", writer.key)


def bare(folder: Path, stages: int, parts: int, synced: bool) -> None:
    """The same rows as plain parquet files, removed as those of the store are."""
    for k in range(stages):
        target = folder / f"{k}-{uuid.uuid4().hex}"
        target.mkdir(parents=True)
        for part in range(parts):
            with open(target / f"{part}.parquet", "wb") as stream:
                pq.write_table(to_table(REPLIES, Reply), stream, compression="zstd")
                if synced:
                    stream.flush()
                    os.fsync(stream.fileno())
        shutil.rmtree(target)


def read_store(store: Store, stage: Stage) -> int:
    return sum(1 for _ in store.get(stage).read(Reply))


def read_bare(folder: Path) -> int:
    return sum(
        1
        for p in sorted(folder.glob("*.parquet"))
        for _ in from_table(pq.read_table(p, schema=schema_of(Reply)), Reply)
    )


def grid(stages: int) -> list[Stage]:
    """A report over teachers of many wordings on shared dialogues: `stages` distinct stages."""
    sources = [Stage(DialoguesSpec(source="jsonl", digest=str(k), split=PaperSplit())) for k in range(10)]
    text = "Rewrite the reply so that it shows understanding. " * 20
    teachers = [
        Stage(
            RepliesSpec(responder=Teacher(provider="p", model="m", turns=(f"{text}{k}",))),
            {"dialogues": sources[k % 10]},
        )
        for k in range(stages - 11)
    ]
    return [Stage(ReportSpec(), {str(k): stage for k, stage in enumerate(teachers)})]


def planning(stages: int, store: Store) -> dict[str, float]:
    """Rates over a fresh graph each time: keys are remembered by a stage."""
    built = seconds(lambda: grid(stages))
    targets = grid(stages)
    keys_s = seconds(lambda: [stage.key for stage in walk(targets)])
    plan_s = seconds(lambda: missing(targets, store.done))
    finished_s = seconds(lambda: store.finished(walk(targets)))
    total_s = built + keys_s + plan_s
    return {
        "plan_s": total_s,
        "keys_per_s": stages / keys_s,
        "done_per_s": stages / plan_s,
        "finished_per_s": stages / finished_s,
    }


def overheads(store: Store, folder: Path, parts: int, repeats: int) -> list[dict[str, Any]]:
    """Our seconds over bare ones, and what is added a part and a stage."""
    pieces: list[tuple[str, Callable[[], Any], Callable[[], Any], int]] = [
        ("part, synced", lambda: through_store(store, 1, parts), lambda: bare(folder, 1, parts, True), parts),
        ("part", lambda: through_store(store, 1, parts), lambda: bare(folder, 1, parts, False), parts),
        ("stage of 1 part", lambda: through_store(store, parts, 1), lambda: bare(folder, parts, 1, True), parts),
    ]
    rows = []
    for what, ours, plain, n in pieces:
        pairs = interleaved(ours, plain, repeats)
        ours_ms, bare_ms = (1e3 * statistics.median(pair[side] for pair in pairs) / n for side in (0, 1))
        rows.append(
            {
                "what": what,
                "ours_ms": ours_ms,
                "bare_ms": bare_ms,
                "ratio": median_ratio(pairs),
                "added_ms": ours_ms - bare_ms,
            }
        )
    return rows


def reading(store: Store, folder: Path, parts: int, repeats: int) -> dict[str, Any]:
    """Reading parts verified against their sha256 over reading plain parquet."""
    stage = Stage(ReportSpec(seed=10**6))
    writer = store.writer(stage)
    for part in range(parts):
        writer.write_records(part, REPLIES, Reply)
        pq.write_table(to_table(REPLIES, Reply), folder / f"{part:05d}.parquet", compression="zstd")
    writer.commit()
    pairs = interleaved(lambda: read_store(store, stage), lambda: read_bare(folder), repeats)
    ours_ms, bare_ms = (1e3 * statistics.median(pair[side] for pair in pairs) / parts for side in (0, 1))
    store.discard(stage.kind, stage.key)
    return {
        "what": "part read",
        "ours_ms": ours_ms,
        "bare_ms": bare_ms,
        "ratio": median_ratio(pairs),
        "added_ms": ours_ms - bare_ms,
    }


def marks(store: Store, parts: int) -> dict[str, float]:
    """Seconds to find `parts` finished parts again, by number and with all they say."""
    stage = Stage(ReportSpec(seed=10**6 + 1))
    writer = store.writer(stage)
    text = b'{"path":"x","size":1,"sha256":"y","rows":1,"counts":{}}'
    for part in range(parts):
        store.files.write(f"{writer.folder}/parts/{part:05d}.json", text)
    figures = {"list_parts_s": seconds(writer.finished_indices), "read_parts_s": seconds(writer.finished_parts)}
    store.discard(stage.kind, stage.key)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    parser.add_argument("--store", help="a folder or s3://bucket/prefix; by default a new folder under build/")
    parser.add_argument("--endpoint", help="http://host:port of an S3-compatible server")
    options = parser.parse_args()
    parts, stages, marked, repeats = (20, 1000, 200, 3) if options.quick else (200, 10_000, 10_000, 5)
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="build") as folder:
        place = {"endpoint": options.endpoint} if options.endpoint else {}
        store = Store.open(options.store or f"{folder}/store", **place)
        store.files.probe()
        through_store(store, 1, 1)  # what is loaded on first use is not a part's cost
        rows = overheads(store, Path(folder) / "bare", parts, repeats)
        (Path(folder) / "read").mkdir()
        rows.append(reading(store, Path(folder) / "read", parts, repeats))
        figures = planning(stages, store) | marks(store, marked)
    added = {
        f"{name}_added_ms": row["added_ms"]
        for name, row in zip(("part", "part_unsynced", "stage", "read"), rows, strict=True)
    }
    ratios = {
        f"{name}_ratio": row["ratio"]
        for name, row in zip(("part", "part_unsynced", "stage", "read"), rows, strict=True)
    }
    report("stages", rows, added | ratios | figures | {"stages": float(stages), "marks": float(marked)}, PACKAGES)


if __name__ == "__main__":
    main()
