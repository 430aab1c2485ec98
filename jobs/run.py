"""Run an experiment down to its report: `empathy run FILE`, or `python -m jobs.run FILE` inside a Ray job."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster import profile as profiles
from cluster.profile import Profile
from cluster.progress import Progress
from empathy import experiment, report
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.records import Estimate
from empathy.stages import missing
from empathy.store import Store


def run(file: str, on: str | None, store_url: str | None) -> int:
    """Make what is missing and show the report. Raises ValueError, before anything is spent, for what the user can
    mend."""
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    lowered = lower(x)
    store = profile.open_store()
    store.files.probe()
    if missing([lowered.report], store.done):
        made = _make(x, lowered, store, profile)
        print(f"made {made} stages in {store.url}", file=sys.stderr)
    else:
        print(f"nothing to make: all stages are in {store.url}", file=sys.stderr)
    return _show(x, lowered, store, file, profile)


def _make(x: Experiment, lowered: Lowered, store: Store, profile: Profile) -> int:
    from cluster import providers, runner

    to_make = missing([lowered.report], store.done)
    with providers.ready(to_make, profile) as places:
        return runner.run([lowered.report], runner.Context(store, profile, Progress(), places, x.name))


def show(file: str, on: str | None, store_url: str | None) -> int:
    """Write report.html anew. Raises ValueError when the experiment is not finished in this store."""
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    lowered = lower(x)
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
