"""Run an experiment down to its report: `empathy run FILE`, or `python -m jobs.run FILE` inside a Ray job."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cluster import profile as profiles
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Failure
from empathy import experiment, report
from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.records import Estimate
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from empathy.words import counted
from jobs import arms, choose
from jobs.partial import partial as partial_report
from serving import uses

INTERRUPTED = 130
PARTIAL = "partial"
"""The folder, below that of the whole report's page, of a page without the arms that lack something."""
LONGEST_SLUG = 80
"""Characters of a folder's name that say what was chosen."""


def run(
    file: str,
    on: str | None,
    store_url: str | None,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
) -> int:
    """Make what is missing and show the report; where stages failed, that of the arms that lack nothing. 0, or 1 when
    stages failed or were left, 130 when told to end.

    Raises ValueError, before anything is spent, for what the user can mend.
    """
    choose.check_max_usd(max_usd)
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    lowered = choose.lowered(x, only)
    targets = choose.targets(lowered, until)
    if until is None:
        profile.check_writable("reports")  # else the run would be told at its end
    store = profile.open_store()
    store.files.probe()
    code, failures = 0, tuple[Failure, ...]()
    if all(store.done(target) for target in targets):
        print(_nothing_to_make(targets, store, partial(again, file, on, store_url, only)), file=sys.stderr)
    else:
        go_on = partial(again, file, on, store_url, only, until)
        code, failures = _make(x, targets, lowered.report, store, profile, go_on, max_usd)
    uses.note(store.files, x.name, walk(targets), arms.users(lowered))  # what was refused at the door stands on nothing
    if until is None and not code:
        return _show(x, lowered, store, profile, file, on, only)
    if until is None and any(not failure.left for failure in failures):  # what a cap left, the next run makes
        why = {failure.stage.key: failure.why for failure in failures}
        _show_partial(x, lowered, store, profile, file, on, only, why)
    return code


def _nothing_to_make(targets: Sequence[Stage], store: Store, command: Callable[[str], str]) -> str:
    """What was asked for is there; what it was made from need not be. `command` makes one stage."""
    stages = list(walk(targets))
    finished = store.finished(stages)
    gone = [f"{stage.kind}/{stage.key}" for stage in stages if stage.key not in finished]
    if not gone:
        return f"nothing to make: all stages are in {store.url}"
    return (
        f"nothing to make: what was asked for is in {store.url}; {counted(len(gone), 'stage')} that it was made from "
        f"{'is' if len(gone) == 1 else 'are'} not (the first is made by `{command(gone[0])}`)"
    )


def _make(
    x: Experiment,
    targets: list[Stage],
    whole: Stage,
    store: Store,
    profile: Profile,
    go_on: Callable[[float | None], str],
    max_usd: float | None,
) -> tuple[int, tuple[Failure, ...]]:
    """0, or 1 when some stage was not made (and what failed or was left), or 130 when the run was told to end; said
    with the command that goes on, which is `go_on` of a cap in dollars that lets it get further."""
    from cluster import bases, embedded, lengths, providers, runner
    from cluster.quota import run_quota

    pending = runner.to_make(targets, store)
    later = runner.to_make([whole], store)
    embedded.check_models(later)
    lengths.check_room(later, profile)
    bases.check(bases.needed(pending), profile)
    quota = run_quota(pending, profile, max_usd)
    try:
        with providers.ready(pending, profile) as places:
            context = runner.Context(store, profile, Progress(), places, x.name, quota)
            outcome = runner.run(targets, context, whole=[whole])
    except KeyboardInterrupt as told:
        command = go_on(max_usd)
        print(f"ended ({told or 'interrupted'}): what was made stays; go on with\n    {command}", file=sys.stderr)
        return INTERRUPTED, ()
    print(f"made {counted(outcome.made, 'stage')} in {store.url}; spent in this run: {quota.spending}", file=sys.stderr)
    if outcome.failures:
        command = go_on(quota.spending.next_max_usd)
        print(failed_table(outcome.failures, outcome.open, command), file=sys.stderr)
    return int(bool(outcome.failures)), outcome.failures


def failed_table(failures: Sequence[Failure], left: int, command: str) -> str:
    """What failed or was left, why, how many stages wait behind it, and the command that goes on, unless all that
    failed would fail again."""
    rows = [("stage", "waiting behind", "why")]
    for failure in failures:
        name = f"{failure.stage.kind}/{failure.stage.key[:8]} {failure.stage.label}".strip()
        mark = "left: " if failure.left else "for good: " if failure.lasting else ""
        rows.append((name, str(failure.behind), mark + failure.why))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {behind:>14}  {why}" for name, behind, why in rows]
    end = [f"Go on with:\n    {command}"] if not all(failure.lasting for failure in failures) else []
    if any(failure.lasting for failure in failures):
        end.append("What failed for good fails the same way in every run: change the experiment as it says there.")
    return "\n".join(["", f"{not_made(left)}:", *lines, "", *end])


def not_made(left: int) -> str:
    """ "1 stage is not made", "2 stages are not made"."""
    return f"{counted(left, 'stage')} {'is' if left == 1 else 'are'} not made"


def again(
    file: str,
    on: str | None,
    store: str | None,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
) -> str:
    """The command line of this run."""
    words = ["empathy", "run", file]
    for name, value in (("--on", on), ("--store", store), ("--until", until), ("--max-usd", max_usd)):
        words += [name, str(value)] if value is not None else []
    return shlex.join(words + [word for pattern in only for word in ("--only", pattern)])


def show(file: str, on: str | None, store_url: str | None, only: Sequence[str] = ()) -> int:
    """Write report.html anew; its numbers are made, where only these are missing. 0, or 1 where arms had to be left
    out because more than that is missing. Raises ValueError when no arm is finished in this store."""
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    store.files.look()
    lowered = choose.lowered(x, only)
    left = missing([lowered.report], store.done)
    if left == [lowered.report]:  # asks no model and needs no Ray: arms that `--only` leaves are seldom reported before
        return run(file, on, store_url, only)
    if not left:
        return _show(x, lowered, store, profile, file, on, only)
    command = again(file, on, store_url, only)
    said = f"{not_made(len(left))} in {store.url}; `{command}` makes them, or says what it cannot"
    if not _show_partial(x, lowered, store, profile, file, on, only, {}):
        raise ValueError(f"file = {file!r}: {said}")
    print(said, file=sys.stderr)
    return 1


def _show_partial(
    x: Experiment,
    lowered: Lowered,
    store: Store,
    profile: Profile,
    file: str,
    on: str | None,
    only: Sequence[str],
    why: Mapping[str, str],
) -> bool:
    """Make and show the report of the arms that lack nothing; False where there is none. `why` says of stages that
    failed, by key, what was wrong."""
    from cluster import runner

    finished = store.finished(walk([lowered.report]))
    partly = partial_report(x, lowered, only, lambda stage: stage.key in finished)
    if partly is None:
        return False
    there = partly.lowered
    outcome = runner.run([there.report], runner.Context(store, profile, Progress(), experiment=x.name))
    if outcome.failures:
        raise ValueError(f"the report of {counted(len(there.cells), 'arm')} failed: {outcome.failures[0].why}")
    _show(x, there, store, profile, file, on, only, partly.left_out(why))
    return True


def _left_out_text(left_out: Sequence[tuple[str, list[str]]], there: int) -> str:
    """ "LEFT OUT, 2 of 6 arms:", then each reason with its arms."""
    out = sum(len(arms) for _, arms in left_out)
    lines = [f"  {', '.join(arms)}\n    {why}" for why, arms in left_out]
    return "\n".join([f"LEFT OUT, {out} of {counted(out + there, 'arm')} (so are comparisons with them):", *lines])


def folder(profile: Profile, name: str, only: Sequence[str] = ()) -> Path:
    """Where the page is drawn: `reports`/NAME, and a folder of its own below that for what `only` leaves."""
    whole = Path(profile.reports) / name
    if not only:
        return whole
    words = re.sub(r"[^\w.+=-]+", "_", "_".join(only)).strip("_.")[:LONGEST_SLUG]
    # Patterns that differ in other characters alone, or after so many, must not share a page.
    return whole / f"only-{words}-{hashlib.sha256(json.dumps(list(only)).encode()).hexdigest()[:6]}"


def _show(
    x: Experiment,
    lowered: Lowered,
    store: Store,
    profile: Profile,
    file: str,
    on: str | None,
    only: Sequence[str],
    left_out: Sequence[tuple[str, list[str]]] = (),
) -> int:
    """Draw the page and print its table. `left_out`: reasons, and the arms of which the report tells nothing; then the
    page has a folder of its own."""
    headline = report.Headline(
        name=x.name,
        question=x.question,
        expect=x.expect,
        differs=x.differs,
        command=again(file, on, store.url, only),
        file=shlex.quote(file),
        where=shlex.join(["--store", store.url] if on is None else ["--on", on, "--store", store.url]),
        left_out=left_out,
    )
    drawn_in = folder(profile, x.name, only) / (PARTIAL if left_out else "")
    page = report.render(lowered.report, store, drawn_in, headline)
    stage, estimates = lowered.report, store.get(lowered.report).read(Estimate)
    print(report.headline(estimates, stage.locator, report.stand_ins(stage), report.judged_sizes(stage, store)))
    if left_out:
        print(f"\n{_left_out_text(left_out, len(lowered.cells))}")
    print(f"\n{page}")
    return 0


if __name__ == "__main__":
    from jobs import cli

    cli.console(["run", *sys.argv[1:]])
