"""What an experiment would do, need and cost, said before anything is done. Imports neither ray nor torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cluster import profile as profiles
from cluster.embedded import check_models
from cluster.lengths import check_room
from cluster.profile import Profile
from empathy import doors, experiment
from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.specs import KINDS
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from empathy.words import counted, dollars
from jobs import arms, choose
from jobs.estimate.calls import Amount, Bill, bills
from jobs.estimate.compute import work
from jobs.estimate.held import Held
from jobs.estimate.sharing import Saved, saved
from jobs.estimate.sight import Sight
from jobs.estimate.storage import storage
from jobs.estimate.view import View, asked_model
from jobs.sources import look
from serving.ledger import Ledger

MOST_NAMED = 8


def plan(
    file: str,
    on: str | None,
    store_url: str | None,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
    every: bool = False,
) -> int:
    """Print the plan of what `run` would do with the same arguments; `every` lists each stage with its key."""
    choose.check_max_usd(max_usd)
    x = experiment.load(file)
    profile = profiles.load(on, store_url)
    lowered = choose.lowered(x, only)
    targets = choose.targets(lowered, until, file)
    print(text(x, lowered, targets, profile, max_usd, every))
    return 0


def text(
    x: Experiment,
    lowered: Lowered,
    targets: Sequence[Stage],
    profile: Profile,
    max_usd: float | None = None,
    every: bool = False,
) -> str:
    """The plan. Raises ValueError for what would stop the run later, such as ratings that a method lacks."""
    store = profile.open_store()
    store.files.look()
    stages = list(walk(targets))
    finished = store.finished(walk([lowered.report]))
    to_make, whole = (missing(ends, lambda stage: stage.key in finished) for ends in (targets, [lowered.report]))
    check_models(whole)
    check_room(whole, profile)
    view = View(stages, finished, store)
    doors.check(to_make, look(store, view.corpus), whole)
    lines = [
        f"{x.name}: {x.question}",
        f"{_cells(x, lowered)}; {counted(len(stages), 'stage')}, {len(to_make):,} to make; store {store.url}",
        *_unpaired(x, lowered),
        "",
        *_stages(stages, finished, to_make),
        "",
        *_shared(lowered, stages, view, profile),
        *_money(_bills(to_make, view, store, profile), max_usd),
        "",
        *_machines(to_make, view, profile),
        *_storage(to_make, view),
        "",
        *_sight(lowered, view),
        *_names(lowered, stages, every),
    ]
    if every:
        waiting = {s.key for s in to_make}
        lines += [
            "",
            *(
                f"  {'to make' if s.key in waiting else 'done   '}  {s.kind:<11} {s.key[:12]}  {s.label}"
                for s in stages
            ),
        ]
    return "\n".join(lines)


# ---------------------------------------------------------------- stages


def _cells(x: Experiment, lowered: Lowered) -> str:
    """ "120 trained students: 20 arms x 3 regimes x 2 students x 1 seed", the factors where they multiply up to it."""
    cells = lowered.cells
    factors = [
        (len({c.lesson.name for c in cells}), "arm"),
        (len({c.regime for c in cells}), "regime"),
        (len({c.student for c in cells}), "student"),
        (len({c.seed for c in cells}), "seed"),
    ]
    product = 1
    for n, _ in factors:
        product *= n
    said = " x ".join(counted(n, name) for n, name in factors)
    return counted(len(cells), "trained student") + (f" ({said})" if product == len(cells) else "")


def _unpaired(x: Experiment, lowered: Lowered) -> Iterator[str]:
    """Regimes that some arms do not have."""
    names = list(dict.fromkeys(cell.lesson.name for cell in lowered.cells if not cell.lesson.teacher))
    if names and (without := [regime for regime in x.grid.regime if regime != "sft"]):
        yield f"  {', '.join(names)}: no pairs to learn from by DPO, so not in the regimes {', '.join(without)}"


def _stages(stages: Sequence[Stage], finished: set[str], to_make: Sequence[Stage]) -> Iterator[str]:
    total, done, left = (
        Counter(s.kind for s in some) for some in (stages, [s for s in stages if s.key in finished], to_make)
    )
    yield f"{'kind':<12}{'stages':>8}{'done':>8}{'to make':>9}"
    yield from (f"{kind:<12}{total[kind]:>8}{done[kind]:>8}{left[kind]:>9}" for kind in KINDS if total[kind])


def _shared(lowered: Lowered, stages: Sequence[Stage], view: View, profile: Profile) -> Iterator[str]:
    """What sharing saves, where the whole is planned and there is somebody to share with."""
    if stages[-1] == lowered.report and len(lowered.cells) > 1:
        needed = arms.users(lowered)
        shared, apart = counted(len(stages), "stage"), needed.total()
        yield f"the arms share work: {shared} instead of {apart:,} if each were run alone"
        yield from _saved(saved(stages, needed, view, profile))
        yield ""


def _saved(by_sharing: Saved) -> Iterator[str]:
    """Dollars; nothing where no model sends a bill."""
    low, high, more = by_sharing.low_usd, by_sharing.high_usd, by_sharing.unknown
    if low or high:
        least = "at least " if more else ""
        saved_usd = f"{least}${low:,.2f} (low) to {least}${high:,.2f} (high)"
        yield f"  a call that arms share is paid once: that saves {saved_usd}"
    elif more:
        yield "  a call that arms share is paid once: the dollars that this saves are unknown"


# ---------------------------------------------------------------- money


def _bills(to_make: Sequence[Stage], view: View, store: Store, profile: Profile) -> list[Bill]:
    if not any(map(asked_model, to_make)) or not store.files.list("ledger/replies", recursive=True):
        return bills(to_make, view, Held(None), profile)
    with Ledger(store.files) as ledger:
        return bills(to_make, view, Held(ledger), profile)


def _money(found: Sequence[Bill], max_usd: float | None) -> Iterator[str]:
    if not found:
        yield "calls: none"
        return
    wide = max(20, *(len(f"{bill.provider} {bill.model}") for bill in found)) + 2
    yield f"{'calls':<{wide}}{'':<6}{'requests':>13}{'tokens in':>16}{'tokens out':>16}{'US dollars':>13}"
    for bill in found:
        for name, amount, what in (("low", bill.low, f"{bill.provider} {bill.model}"), ("high", bill.high, "")):
            figures = (amount.requests, amount.tokens_in, amount.tokens_out)
            requests, tokens_in, tokens_out = (_figure(f"{n:,.0f}", n, bill.unknown) for n in figures)
            usd = bill.usd(amount)
            dollars = "unknown" if usd is None else _figure(f"{usd:,.2f}", usd, 0 if bill.free else bill.unknown)
            yield f"{what:<{wide}}{name:<6}{requests:>13}{tokens_in:>16}{tokens_out:>16}{dollars:>13}"
        yield f"  {_remarks(bill)}"
    yield _total(found, max_usd)


def _figure(said: str, known: float, unknown: int) -> str:
    """A sum that some stages are not in is a lower bound; one that knows of nothing is unknown, and not 0."""
    return said if not unknown else f">= {said}" if known else "unknown"


def _remarks(bill: Bill) -> str:
    price = bill.price
    if price is None:
        said = [f'unknown price: add [prices."{bill.model}"] to the profile']
    elif price.as_of == "always":
        said = ["no bill: our own"]
    else:
        rates = f"${price.usd_per_million_in:g} in, ${price.usd_per_million_out:g} out a million tokens"
        share = f", times {bill.share:g} (batch API)" if bill.share != 1 else ""
        said = [f"{rates}{share}, as of {price.as_of}"]
    said += [f"{counted(bill.held, 'answer')} in the ledger already"] if bill.held else []
    unlooked = f"{counted(bill.unlooked, 'stage')} not looked up in the ledger (requests not known yet, or too many)"
    said += [unlooked] if bill.unlooked else []
    unknown = f"{counted(bill.unknown, 'stage')} unknown until the dialogues are read (--until dialogues)"
    said += [unknown] if bill.unknown else []
    return "; ".join(said)


def _total(found: Sequence[Bill], max_usd: float | None) -> str:
    low, high = ([bill.usd(amount) for bill, amount in _ends(found, end)] for end in ("low", "high"))
    known = [sum(usd for usd in end if usd is not None) for end in (low, high)]
    at_least = "at least " if None in low or any(bill.unknown and not bill.free for bill in found) else ""
    said = f"dollars in all: {at_least}{known[0]:,.2f} (low) to {at_least}{known[1]:,.2f} (high)"
    billed = [usd for bill, usd in zip(found, low, strict=True) if not bill.free]
    if billed and all(usd is None for usd in billed):
        said = "dollars in all: unknown"
    if max_usd is None:
        return said
    if any(bill.price is None for bill in found):
        return f"{said}; a cap cannot be kept while a price is unknown: the run would refuse it"
    enough = "covers the high end" if max_usd >= known[1] and not at_least else "may stop the run before its end"
    return f"{said}; the cap of {dollars(max_usd)} {enough}"


def _ends(found: Sequence[Bill], end: str) -> list[tuple[Bill, Amount]]:
    return [(bill, bill.low if end == "low" else bill.high) for bill in found]


# ---------------------------------------------------------------- machines


def _machines(to_make: Sequence[Stage], view: View, profile: Profile) -> Iterator[str]:
    gpu = profile.gpu
    yield f"{'students':<12}{'stages':>8}{'tokens':>16}{'GPU-hours':>12}"
    for name, done in work(to_make, view, profile).items():
        unknown = f"  {counted(done.unknown, 'stage')} unknown" if done.unknown else ""
        tokens = _figure(f"{done.tokens:,.0f}", done.tokens, done.unknown)
        hours = _figure(_hours(done.hours), done.hours, done.unknown)
        yield f"{name:<12}{done.stages:>8}{tokens:>16}{hours:>12}{unknown}"
    yield (
        f"  compute alone, without loading: {gpu.tflops:g} TFLOP/s x {gpu.mfu:g}, {gpu.gb_per_s:g} GB/s ([gpu] of the "
        "profile); 6N FLOPs a token full, 4N LoRA, 2N scoring"
    )


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 or not hours else f"{hours:.1e}"


def _storage(to_make: Sequence[Stage], view: View) -> Iterator[str]:
    need = storage(to_make, view)
    weights = _figure(_size(need.weights_bytes), need.weights_bytes, need.unknown_weights)
    rows = _figure(_size(need.rows_bytes), need.rows_bytes, need.unknown_rows)
    unknown = need.unknown_weights + need.unknown_rows
    yield f"storage: {weights} of weights, {rows} of rows" + (
        f"; {counted(unknown, 'stage')} unknown" if unknown else ""
    )


def _size(size_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


# ---------------------------------------------------------------- sight, names


def _sight(lowered: Lowered, view: View) -> Iterator[str]:
    corpus = view.corpus(lowered.report.inputs["dialogues"])
    n = corpus.count("test")
    if not n:
        yield "test prompts: unknown until the dialogues are read (--until dialogues)"
        return
    sight = Sight.of_groups([d.group for d in corpus.on("test")]) if corpus.whole else Sight(n)
    groups = counted(sight.clusters, "cluster") if sight.clusters is not None else "clusters unknown: the best case"
    prompts = f"{counted(n, 'test prompt')} ({groups})"
    if not sight.tells:
        yield f"{prompts}: how well a win rate is known cannot be told with so few; test on more"
        return
    yield (
        f"{prompts}: a win rate of 50% is known to +-{100 * sight.half_width():.1f} points, of 90% "
        f"to +-{100 * sight.half_width(0.9):.1f};"
    )
    yield (
        f"  two arms differ visibly (80% power, 95%, paired, one comparison) from {_seen(sight, 0.9)} below 90% and "
        f"{_seen(sight, 0.5)} below 50%"
    )


def _seen(sight: Sight, upper: float) -> str:
    points = 100 * sight.paired(upper)
    return f"{points:.1f} points" if points < 99.9 * upper else "nowhere"


def _names(lowered: Lowered, stages: Sequence[Stage], every: bool) -> Iterator[str]:
    """The students that would be there afterwards."""
    there = {s.key for s in stages}
    names = [name for name, checkpoint in lowered.checkpoints.items() if checkpoint.key in there]
    shown = names if every or len(names) <= MOST_NAMED else names[:MOST_NAMED]
    more = f" and {len(names) - len(shown)} more (--all lists them and every stage)" if len(shown) < len(names) else ""
    if names:
        yield ""
        yield f"students: {', '.join(shown)}{more}"
