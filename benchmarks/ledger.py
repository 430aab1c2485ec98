"""What the ledger costs: looking up, appending, and what it adds to calls of 50 ms. `python -m benchmarks.ledger
[--quick]`

Limits: an append is one write to the page cache, a lookup one read from it; a call costs its latency. Bars: >= 20,000
rows/s from the ledger, <= 0.5 ms of CPU a call, ledger included.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, median_ratio, report, seconds
from empathy.files import Files, open_files
from empathy.records import Turn
from empathy.requests import Answer, Asking, Request
from serving.client import drive
from serving.ledger import Ledger
from serving.providers import Provider
from serving.scripted import Faults, Scripted

LATENCY_S, IN_FLIGHT, REPEATS = 0.05, 64, 5
PROMPT = "You are the Listener in the conversation below. The Speaker is telling you about something. " * 8
REPLY = (
    "I hear that your dog died last week, which sounds heartbreaking. My heart aches with you. I am here for you. " * 2
)


class NoLedger(Ledger):
    """The same questions, answered from memory: what calls cost without a ledger."""

    def __init__(self) -> None:
        self._replies: dict[str, Answer] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def get(self, key: str) -> Answer | None:
        return self._replies.get(key)

    def record(self, request: Request, answer: Answer) -> None:
        self._replies[request.key] = answer

    def claim(self, keys: Sequence[str]) -> set[str]:
        return set(keys)

    def holds(self, key: str) -> bool:
        return True

    def release(self, keys: Iterable[str] | None = None) -> None:
        return None

    def flush(self) -> None:
        return None


def request(number: int, series: int = 0) -> Request:
    return Request("scripted", "rule-teacher-1", (Turn("user", f"{PROMPT}My dog number {number} of {series} died."),))


def asking(number: int, series: int = 0) -> Asking[Answer]:
    return (yield request(number, series))


async def driven(count: int, series: int, provider: Provider, ledger: Ledger) -> None:
    askings = ((str(k), asking(k, series)) for k in range(count))
    answered = 0
    async for _ in drive(askings, provider, ledger, IN_FLIGHT):
        answered += 1
    assert answered == count


def append(files: Files, count: int) -> None:
    with Ledger(files) as ledger:
        for k in range(count):
            ledger.record(request(k), Answer(REPLY, "stop", "rule-teacher-1", 120, 40))


def cpu_and_wall_s(work: Callable[[], Any]) -> tuple[float, float]:
    """A shared machine's wall time says little: both are shown."""
    began_s = time.process_time()
    wall_s = seconds(work)
    return time.process_time() - began_s, wall_s


def row(what: str, rows: int, wall_s: float, cpu_s: float) -> dict[str, Any]:
    return {
        "what": what,
        "rows": rows,
        "wall_s": wall_s,
        "rows_per_s": rows / wall_s,
        "cpu_s": cpu_s,
        "rows_per_cpu_s": rows / cpu_s,
    }


def get_all(ledger: Ledger, count: int) -> None:
    for k in range(count):
        assert ledger.get(request(k).key) is not None


def stored(folder: Path, rows: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Appending, opening and looking up `rows` replies."""
    files = open_files(str(folder))
    nowhere = Provider("scripted", "http://127.0.0.1:9/v1")
    append(files, rows)
    works: dict[str, Callable[[], Any]] = {
        "append": lambda: append(open_files(f"{folder}/again"), rows),
        "open": lambda: Ledger(files),
        "look up": lambda: get_all(Ledger(files), rows),
        "rerun of a stage": lambda: asyncio.run(driven(rows, 0, nowhere, Ledger(files))),
    }
    table, figures = list[dict[str, Any]](), dict[str, float]()
    for name, work in works.items():
        cpu_s, s = cpu_and_wall_s(work)
        table.append(row(name, rows, s, cpu_s))
        figures |= {f"{name.replace(' ', '_')}_rows_per_s": rows / s}
        figures |= {f"{name.replace(' ', '_')}_rows_per_cpu_s": rows / cpu_s}
    return table, figures


def called(folder: Path, count: int, provider: Provider) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """`count` calls of 50 ms with the ledger and without, in turn."""
    files, series, cpu_s = open_files(str(folder)), iter(range(10**6)), dict[str, list[float]]()

    def calls(name: str, ledger: Ledger) -> None:
        began_s = time.process_time()
        asyncio.run(driven(count, next(series), provider, ledger))
        cpu_s.setdefault(name, []).append(time.process_time() - began_s)

    with Ledger(files) as ledger:
        calls("warm", ledger)
        pairs = interleaved(lambda: calls("with", ledger), lambda: calls("without", NoLedger()), REPEATS)
    walls = dict(zip(("with", "without"), (statistics.median(side) for side in zip(*pairs, strict=True)), strict=True))
    cpu = {name: statistics.median(cpu_s[name]) for name in walls}
    table = [row(f"calls {name} ledger", count, s, cpu[name]) for name, s in walls.items()]
    added_ms = statistics.median((a - b) * IN_FLIGHT / count * 1000 for a, b in pairs)
    figures = {
        "wall_ratio": median_ratio(pairs),
        "added_ms_per_call": added_ms,
        "cpu_ms_per_call": cpu["with"] / count * 1000,
        "cpu_ms_per_call_without": cpu["without"] / count * 1000,
    }
    return table, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    rows, count = (5_000, 640) if parser.parse_args().quick else (50_000, 3_200)
    build = Path("build/benchmarks")
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as folder, Scripted(Faults(latency_s=LATENCY_S)) as server:
        table, figures = stored(Path(folder) / "stored", rows)
        more, costs = called(Path(folder) / "called", count, Provider("scripted", server.url))
    report("ledger", table + more, figures | costs, ("aiohttp", "orjson"))


if __name__ == "__main__":
    main()
