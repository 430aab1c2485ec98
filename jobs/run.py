"""Run an experiment down to its report: `empathy run FILE`, or `python -m jobs.run FILE` inside a Ray job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial

from cluster import profile as profiles
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Failure
from empathy import experiment
from empathy.experiment import Experiment
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from empathy.words import counted
from jobs import arms, choose
from jobs.page import Page
from serving import uses

INTERRUPTED = 130


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
    targets = choose.targets(lowered, until, file)
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
    page = Page(x, lowered, store, profile, file, on, only, again(file, on, store.url, only))
    if until is None and not code:
        page.show()
    elif until is None and any(not failure.left for failure in failures):  # what a cap left, the next run makes
        page.show_partial({failure.stage.key: failure.why for failure in failures})
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
        print(f"ended ({str(told) or 'interrupted'}): what was made stays; go on with\n    {command}", file=sys.stderr)
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
    page = Page(x, lowered, store, profile, file, on, only, again(file, on, store.url, only))
    if not left:
        page.show()
        return 0
    command = again(file, on, store_url, only)
    said = f"{not_made(len(left))} in {store.url}; `{command}` makes them, or says what it cannot"
    if not page.show_partial({}):
        raise ValueError(f"file = {file!r}: {said}")
    print(said, file=sys.stderr)
    return 1


if __name__ == "__main__":
    from jobs import cli

    cli.console(["run", *sys.argv[1:]])
