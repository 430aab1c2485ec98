"""report.html of an experiment, and the table below it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.profile import Profile
from empathy import report
from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.records import Estimate
from empathy.stages import walk
from empathy.store import Store
from empathy.words import counted
from jobs.partial import partial

PARTIAL = "partial"
"""The folder, below that of the whole report's page, of a page without the arms that lack something."""
LONGEST_SLUG = 80
"""Characters of a folder's name that say what was chosen."""


@dataclass(frozen=True)
class Page:
    """Of `lowered`, which is `x` with what `only` leaves. `file`, `on` and `command` are what the user gave, and the
    command line that makes it."""

    x: Experiment
    lowered: Lowered
    store: Store
    profile: Profile
    file: str
    on: str | None
    only: Sequence[str]
    command: str

    def show(self) -> None:
        """Draw it and print its table; the report is finished in the store."""
        self._show(self.lowered, [])

    def show_partial(self, why: Mapping[str, str]) -> bool:
        """Make and show the report of the arms that lack nothing, in a folder of its own; False where there is none.
        `why` says of stages that failed, by key, what was wrong. Raises ValueError when that report fails."""
        from cluster import runner
        from cluster.progress import Progress

        finished = self.store.finished(walk([self.lowered.report]))
        partly = partial(self.x, self.lowered, self.only, lambda stage: stage.key in finished)
        if partly is None:
            return False
        there = partly.lowered
        outcome = runner.run(
            [there.report], runner.Context(self.store, self.profile, Progress(), experiment=self.x.name)
        )
        if outcome.failures:
            raise ValueError(f"the report of {counted(len(there.cells), 'arm')} failed: {outcome.failures[0].why}")
        self._show(there, partly.left_out(why))
        return True

    def _show(self, lowered: Lowered, left_out: Sequence[tuple[str, list[str]]]) -> None:
        """`left_out`: reasons, and the arms of which the report tells nothing."""
        store, stage = self.store, lowered.report
        headline = report.Headline(
            name=self.x.name,
            question=self.x.question,
            expect=self.x.expect,
            differs=self.x.differs,
            command=self.command,
            file=shlex.quote(self.file),
            where=shlex.join(["--store", store.url] if self.on is None else ["--on", self.on, "--store", store.url]),
            left_out=left_out,
        )
        drawn_in = folder(self.profile, self.x.name, self.only) / (PARTIAL if left_out else "")
        page = report.render(stage, store, drawn_in, headline)
        estimates = store.get(stage).read(Estimate)
        print(report.headline(estimates, stage.locator, report.stand_ins(stage), report.judged_sizes(stage, store)))
        if left_out:
            print(f"\n{_left_out_text(left_out, len(lowered.cells))}")
        print(f"\n{page}")


def folder(profile: Profile, name: str, only: Sequence[str] = ()) -> Path:
    """Where the page is drawn: `reports`/NAME, and a folder of its own below that for what `only` leaves."""
    whole = Path(profile.reports) / name
    if not only:
        return whole
    words = re.sub(r"[^\w.+=-]+", "_", "_".join(only)).strip("_.")[:LONGEST_SLUG]
    # Patterns that differ in other characters alone, or after so many, must not share a page.
    return whole / f"only-{words}-{hashlib.sha256(json.dumps(list(only)).encode()).hexdigest()[:6]}"


def _left_out_text(left_out: Sequence[tuple[str, list[str]]], there: int) -> str:
    """ "LEFT OUT, 2 of 6 arms:", then each reason with its arms."""
    out = sum(len(arms) for _, arms in left_out)
    lines = [f"  {', '.join(arms)}\n    {why}" for why, arms in left_out]
    return "\n".join([f"LEFT OUT, {out} of {counted(out + there, 'arm')} (so are comparisons with them):", *lines])
