"""The live view of a run on a terminal: stages by kind and state, what is at work, calls, dollars and time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.progress import Progress, Snapshot
from cluster.schedule import State
from empathy.specs import KINDS

if TYPE_CHECKING:
    from rich.console import Group

SHOWN_STAGES = 8
COLUMNS = {
    "done": (State.DONE,),
    "running": (State.RUNNING,),
    "waiting": (State.READY, State.WAITING),
    "in another run": (State.HELD,),
    "failed": (State.FAILED,),
    "left": (State.LEFT,),
    "behind a failed one": (State.BEHIND,),
}
ALWAYS = ("done", "running", "waiting")


def view(now: Snapshot) -> Group:
    """The whole grid, for `rich`. States that no stage is in have no column, apart from the first three."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    there = {kind for kind, _ in now.counts}
    kinds = [kind for kind in KINDS if kind in there]
    numbers = {
        name: [sum(now.counts.get((kind, state), 0) for state in states) for kind in kinds]
        for name, states in COLUMNS.items()
    }
    shown = [name for name in COLUMNS if name in ALWAYS or any(numbers[name])]
    table = Table("stages", *shown, box=None, pad_edge=False)
    for row, kind in enumerate(kinds):
        table.add_row(kind, *(f"{numbers[name][row]:,}" if numbers[name][row] else "-" for name in shown))
    working = [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in now.working[:SHOWN_STAGES]]
    if more := len(now.working) - SHOWN_STAGES:
        working += [Text(f"  and {more:,} more")] if more > 0 else []
    return Group(table, *working, *([Text(now.money)] if now.money else []), Text(now.time))


@contextmanager
def live(progress: Progress) -> Iterator[None]:
    """On a terminal: the view below the lines, drawn anew twice a second. Elsewhere: lines alone."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console, plain, last = Console(stderr=True), progress.out, view(progress.snapshot())

    def drawn() -> Group:
        nonlocal last
        now = progress.glance()
        last = last if now is None else view(now)
        return last

    with Live(get_renderable=drawn, console=console, refresh_per_second=2, transient=True):
        progress.out, progress.quiet = lambda line: console.print(line, markup=False, highlight=False), True
        try:
            yield
        finally:
            progress.out, progress.quiet = plain, False
