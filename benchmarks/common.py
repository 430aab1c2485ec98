"""What benchmarks share: interleaved repeats, medians, a table, a csv with machine and versions, a line of figures."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUTPUT = Path("build/benchmarks")


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def interleaved(ours: Callable[[], Any], bare: Callable[[], Any], repeats: int = 3) -> list[tuple[float, float]]:
    """Seconds of ours and bare, A B A B: what disturbs the machine disturbs both."""
    return [(seconds(ours), seconds(bare)) for _ in range(repeats)]


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of ours / bare over the repeats."""
    return statistics.median(ours / bare for ours, bare in pairs)


def circumstances(packages: Sequence[str]) -> dict[str, str]:
    """Machine, date and versions, for every row of a csv."""
    machine = f"{platform.system()} {platform.machine()} {os.cpu_count()} cores"
    versions = {name: version(name) for name in packages}
    return {
        "machine": machine,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "python": platform.python_version(),
    } | versions


def report(
    name: str, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, float], packages: Sequence[str] = ()
) -> None:
    """Print `rows` as a table, write them to build/benchmarks/NAME.csv, and end with one line of figure=value."""
    columns = list(rows[0])
    texts = [columns, *([_text(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[k]) for line in texts) for k in range(len(columns))]
    for line in texts:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    where = circumstances(packages)
    with open(OUTPUT / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*columns, *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    print(f"written to {OUTPUT / name}.csv")
    print(" ".join(f"{figure}={_text(value)}" for figure, value in figures.items()))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
