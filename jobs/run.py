"""Run an experiment down to its report: `empathy run FILE`, or `python -m jobs.run FILE` inside a Ray job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import profile as profiles
from cluster.profile import Profile
from cluster.progress import Progress
from empathy import experiment, report
from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.records import Estimate
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from jobs import choose
from serving import uses


def run(
    file: str,
    on: str | None,
    store_url: str | None,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
) -> int:
    """Make what is missing and show the report. Raises ValueError, before anything is spent, for what the user can
    mend."""
    choose.check_max_usd(max_usd)
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    lowered = choose.lowered(x, only)
    targets = choose.targets(lowered, until)
    store = profile.open_store()
    store.files.probe()
    uses.note(store.files, x.name, walk(targets))
    if missing(targets, store.done):
        made = _make(x, targets, store, profile)
        print(f"made {made} stages in {store.url}", file=sys.stderr)
    else:
        print(f"nothing to make: all stages are in {store.url}", file=sys.stderr)
    return _show(x, lowered, store, file, profile) if until is None else 0


def _make(x: Experiment, targets: list[Stage], store: Store, profile: Profile) -> int:
    from cluster import providers, runner

    to_make = missing(targets, store.done)
    with providers.ready(to_make, profile) as places:
        return runner.run(targets, runner.Context(store, profile, Progress(), places, x.name))


def show(file: str, on: str | None, store_url: str | None, only: Sequence[str] = ()) -> int:
    """Write report.html anew. Raises ValueError when the experiment is not finished in this store."""
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    lowered = choose.lowered(x, only)
    left = missing([lowered.report], store.done)
    if left:
        raise ValueError(
            f"file = {file!r}: {len(left)} stages are not made in {store.url}; `empathy run {file}` makes them"
        )
    return _show(x, lowered, store, file, profile)


def _show(x: Experiment, lowered: Lowered, store: Store, file: str, profile: Profile) -> int:
    headline = report.Headline(
        name=x.name,
        question=x.question,
        expect=x.expect,
        differs=x.differs,
        command=f"empathy run {file} --store {store.url}",
    )
    page = report.render(lowered.report, store, Path(profile.reports) / x.name, headline)
    print(report.headline(store.get(lowered.report).read(Estimate), lowered.report.locator))
    print(f"\n{page}")
    return 0


if __name__ == "__main__":
    from jobs import cli

    cli.console(["run", *sys.argv[1:]])
