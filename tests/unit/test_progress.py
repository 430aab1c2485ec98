"""Progress against a clock that the test moves: plain lines, figures, and the view of the whole grid."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from cluster.estimate import Sort
from cluster.live import view
from cluster.progress import Progress, clock, named
from cluster.quota import Seen
from cluster.schedule import Place, Schedule
from empathy.specs import LogprobsSpec, RepliesSpec, ReportSpec
from empathy.specs import Recorded as RecordedReplies
from empathy.stages import Stage
from empathy.words import counted
from serving.budget import Spending
from serving.quota import Asked

ROUTE = ("openai", "gpt-4o")
ASKING = "asking openai gpt-4o"


def replies(name: str) -> Stage:
    return Stage(RepliesSpec(responder=RecordedReplies(responder=name)), label=name)


def scores(name: str) -> Stage:
    """A stage of its own key."""
    return Stage(LogprobsSpec(), {"examples": replies(name)}, label=name)


def sort_of(stage: Stage) -> Sort:
    return Sort(ASKING if stage.kind == "replies" else "training", stage.kind)


def seen(sent: int = 0, usd: float = 0.0, unpriced: int = 0, **more: object) -> Seen:
    return Seen(
        Spending(None, usd, 0.0, unpriced),
        asked={ROUTE: Asked(sent, usd, unpriced)},
        **more,  # type: ignore[arg-type]
    )


class Told:
    """A run of `stages`, of which the replies are asked of ROUTE."""

    def __init__(self, *stages: Stage, free: bool = False) -> None:
        self.lines: list[str] = []
        self.at_s = 0.0
        self.progress = Progress(out=self.lines.append, now_s=lambda: self.at_s)
        self.progress.schedule = Schedule(stages, lambda stage: Place(stage.kind))
        self.progress.begin(stages, sort_of, {ASKING: None if free else ROUTE})
        self.lines.clear()

    def at(self, at_s: float) -> Progress:
        self.at_s = at_s
        return self.progress

    def take(self, stage: Stage) -> None:
        assert self.progress.schedule is not None
        self.progress.schedule.take(Place(stage.kind))
        self.progress.taken(stage)

    def end(self, stage: Stage, **counts: int) -> None:
        assert self.progress.schedule is not None
        self.progress.schedule.done(stage)
        self.progress.finished(stage, counts)


def test_words() -> None:
    assert [clock(s) for s in (0, 59.4, 75, 3700)] == ["0:00", "0:59", "1:15", "1:01:40"]
    assert [counted(n, "stage") for n in (0, 1, 2000)] == ["0 stages", "1 stage", "2,000 stages"]
    report = Stage(ReportSpec(), {"dialogues": replies("a")}, label="report")
    assert [named(s) for s in (replies("a"), report)] == ["replies a", "report"]


# ---------------------------------------------------------------- lines


def test_the_first_line_says_what_is_to_be_made() -> None:
    lines: list[str] = []
    Progress(out=lines.append, now_s=lambda: 0.0).begin([replies("a"), replies("b"), scores("s")])
    assert lines == ["[0:00] 3 stages to make: replies 2, logprobs 1"]


def test_a_stage_that_is_made_is_said_once_with_its_counts_in_words() -> None:
    told = Told(stage := replies("a"))
    told.take(stage)
    told.progress.units(stage, 0, 200)
    told.lines.clear()
    told.at(65)
    for _ in range(2):
        told.end(stage, calls=1200, from_ledger=10, tokens_in=5000, too_long=0, shared=3, shared_tokens_in=70)
    assert told.lines == [
        "[1:05] 1/1 replies    a: made in 1:05 (1,200 calls, 10 from the ledger, 5,000 tokens in)",
    ]


def test_a_lane_says_every_ten_seconds_how_far_it_is_and_other_lanes_are_not_kept_quiet_by_it() -> None:
    told = Told(asked := replies("a"), scored := scores("s"))
    for at in range(0, 21, 2):
        told.at(at).units(asked, at, 100)
        told.progress.units(scored, 3 * at, 100)
    assert told.lines == [
        "[0:00] 0/2 replies    a: 0 of 100 dialogues",
        "[0:00] 0/2 logprobs   s: 0 of 100 examples",
        "[0:10] 0/2 replies    a: 10 of 100 dialogues, 1:30 to go",
        "[0:10] 0/2 logprobs   s: 30 of 100 examples, 0:23 to go",
        "[0:20] 0/2 replies    a: 20 of 100 dialogues, 1:20 to go",
        "[0:20] 0/2 logprobs   s: 60 of 100 examples, 0:13 to go",
    ]


def test_what_was_saved_before_is_said_and_is_no_pace() -> None:
    told = Told(stage := scores("s"))
    told.progress.units(stage, 50, 100)
    told.at(12).units(stage, 51, 100)
    told.at(24).units(stage, 60, 100)
    assert told.lines == [
        "[0:00] 0/1 logprobs   s goes on at 50 of 100 examples, which were saved before",
        "[0:00] 0/1 logprobs   s: 50 of 100 examples, time to go unknown",
        "[0:12] 0/1 logprobs   s: 51 of 100 examples, time to go unknown",
        "[0:24] 0/1 logprobs   s: 60 of 100 examples, 0:53 to go",
    ]


def test_a_loss_is_said_once_and_then_where_the_work_goes_on() -> None:
    told = Told(stage := scores("s"))
    told.take(stage)
    for at in (0, 10, 20):
        told.at(at).units(stage, 2 * at, 100)
    told.lines.clear()
    for at in (21, 22):
        told.at(at).lost("training", "rank 1 of 2 ended; all start again")
    told.at(80).units(stage, 30, 100)
    told.at(90).units(stage, 50, 100)
    told.at(100).units(stage, 0, 100)
    assert told.lines == [
        "[0:21] warning: training: rank 1 of 2 ended; all start again",
        "[1:20] 0/1 logprobs   s goes on at 30; it was at 40 of 100 examples",
        "[1:20] 0/1 logprobs   s: 30 of 100 examples, time to go unknown",
        "[1:20] in all: 0 of 1 stage made, 1 at work; at least 0:35 to go",
        "[1:30] 0/1 logprobs   s: 50 of 100 examples, time to go unknown",
        "[1:40] 0/1 logprobs   s begins anew; it was at 50 of 100 examples",
        "[1:40] 0/1 logprobs   s: 0 of 100 examples",
    ]


def test_failures_are_counted_in_every_line_after_them() -> None:
    first, second = replies("a"), replies("b")
    told = Told(first, second)
    told.progress.failed(first, "no key", [scores("s")])
    told.end(second)
    assert told.lines == [
        "[0:00] 0/2 (1 failed) replies    a: FAILED: no key (1 stage that stands on it will not be made)",
        "[0:00] 1/2 (1 failed) replies    b: made",
    ]


def test_what_a_cap_leaves_is_one_line_however_much_it_is() -> None:
    stages = [replies(name) for name in "abc"]
    told = Told(*stages)
    for stage in stages:
        told.progress.left(stage, "max_usd = 1: $0.99 is spent")
    assert told.lines == ["[0:00] max_usd = 1: $0.99 is spent; what would need more calls is left to the next run"]


def test_another_runs_stages_are_said_at_the_first_and_when_they_are_made() -> None:
    stages = [replies(name) for name in "ab"]
    told = Told(*stages)
    for stage in stages:
        told.progress.held(stage)
    told.end(stages[0])
    told.take(stages[1])  # the other run ended
    told.end(stages[1])
    assert told.lines == [
        "[0:00] 0/2 replies    a: is being made by another run: such stages are left to it, and waited for",
        "[0:00] 1/2 replies    a: made by another run",
        "[0:00] 2/2 replies    b: made",
    ]


# ---------------------------------------------------------------- calls, dollars, time


def test_every_half_minute_the_whole_run_is_told_with_what_the_quota_has_seen() -> None:
    """Two stages of 200 rows ask. 100 rows cost 0.30 dollars in 25 s, so 300 more cost 0.90 and take 75 s. Calls a
    second are those of the last half minute: 10 s of 2, and 20 s of 8, are 6."""
    first, second, scored = replies("a"), replies("b"), scores("s")
    told = Told(first, second, scored)
    told.take(first)
    told.at(5).units(first, 0, 200)
    for at in range(0, 41, 2):
        sent = 2 * at if at <= 20 else 40 + 8 * (at - 20)
        rows = max(0, min(100, 4 * (at - 5)))
        told.at(at).seen(seen(sent, 0.003 * rows, rows={first.key: rows}))
    whole = [line for line in told.lines if "in all" in line]
    assert whole == [
        "[0:30] in all: 0 of 3 stages made, 1 at work, 2 to come; 120 calls (4.0/s), $0.30 spent, about $0.90 to come; "
        "at least 1:15 to go (not counted: logprobs)",
    ]
    assert told.progress.snapshot().money == "200 calls (6.0/s), $0.30 spent, about $0.90 to come"
    assert "[0:16] 0/3 replies    a: 44 of 200 dialogues, 0:39 to go" in told.lines


def test_rows_that_workers_have_are_not_taken_back_when_a_part_ends() -> None:
    """Parts of 10. The second is under way: 13 rows are there, of which the driver knows 10 as written."""
    told = Told(stage := replies("a"))
    told.progress.units(stage, 0, 40)
    told.progress.seen(seen(rows={stage.key: 13}))
    told.progress.units(stage, 10, 40)
    told.progress.seen(seen(rows={stage.key: 12}))
    assert told.progress.snapshot().working == ["replies a: 13 of 40 dialogues, time to go unknown"]
    told.progress.units(stage, 20, 40)
    assert told.progress.snapshot().working == ["replies a: 20 of 40 dialogues, time to go unknown"]


def test_rows_of_an_earlier_run_come_beside_those_that_workers_tell() -> None:
    told = Told(stage := replies("a"))
    told.progress.units(stage, 20, 40)
    told.progress.seen(seen(rows={stage.key: 5}))
    assert told.progress.snapshot().working[0].startswith("replies a: 25 of 40 dialogues")


def test_workers_that_are_started_again_are_said_by_the_model_that_they_ask() -> None:
    told = Told(replies("a"))
    told.progress.seen(seen(restarts={"openai gpt-4o": 0}))
    told.at(1).seen(seen(restarts={"openai gpt-4o": 1}))
    told.at(3).seen(seen(restarts={"openai gpt-4o": 1}))
    (line,) = told.lines
    assert line.startswith("[0:01] warning: asking openai gpt-4o: a worker's process is gone")


def test_a_provider_that_is_away_is_said_once_an_outage() -> None:
    told = Told(replies("a"))
    outages: list[dict[str, str]] = [
        {},
        {"openai": "it is away (A)"},
        {"openai": "it is away (B)"},
        {},
        {"openai": "away again"},
    ]
    for at, away in enumerate(outages):
        told.at(at).seen(seen(away=away))
    assert told.lines == ["[0:01] warning: it is away (A)", "[0:04] warning: away again"]


def test_a_price_that_is_unknown_is_no_number() -> None:
    told = Told(replies("a"))
    told.progress.seen(seen(9, 1.0, unpriced=9))
    assert told.progress.snapshot().money == "9 calls, dollars unknown (a model has no price)"


def test_what_a_model_that_was_not_asked_yet_will_cost_is_unknown_and_a_free_one_costs_nothing() -> None:
    stage = replies("a")
    told, free = Told(stage), Told(stage, free=True)
    for one in (told, free):
        one.progress.seen(seen(1, 0.0))
    assert told.progress.snapshot().money == "1 call, $0.00 spent, to come unknown"
    assert free.progress.snapshot().money == "1 call, $0.00 spent"


def test_calls_of_batches_are_added() -> None:
    told = Told(replies("a"))
    told.progress.asked(50)
    told.progress.seen(seen(1))
    assert told.progress.snapshot().money.startswith("51 calls,")


def test_a_run_that_asks_nobody_says_nothing_of_money() -> None:
    progress = Progress(out=lambda line: None)
    progress.begin([scores("s")], sort_of)
    progress.seen(Seen(Spending(None, 0.0, 0.0, 0)))
    assert progress.snapshot().money == ""


# ---------------------------------------------------------------- the view


def shown(told: Told) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=110).print(view(told.progress.snapshot()))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_view_has_every_kind_what_is_at_work_the_money_and_the_time() -> None:
    first, second, scored = replies("a"), replies("b"), scores("s")
    told = Told(first, second, scored)
    told.take(first)
    told.at(0).units(first, 0, 200)
    told.at(5).seen(seen(100, 0.15, rows={first.key: 50}))
    told.at(10).seen(seen(120, 0.30, rows={first.key: 100}))
    told.progress.units(scored, 0, 50)
    assert shown(told) == [
        "stages    done  running  waiting",
        "replies   -     1        1",
        "logprobs  -     -        1",
        "  logprobs s: 0 of 50 examples",
        "  replies a: 100 of 200 dialogues, 0:10 to go",
        "120 calls (4.0/s), $0.30 spent, about $0.90 to come",
        "0:10 gone, at least 0:30 to go (not counted: logprobs)",
    ]


def test_the_view_tells_of_failures_and_what_stands_behind_them_and_keeps_long_lists_short() -> None:
    many = [scores(f"s{k}") for k in range(12)]
    told = Told(replies("a"), *many)
    assert told.progress.schedule is not None
    for stage in many:
        told.progress.units(stage, 1, 9)
    told.progress.schedule.failed(many[0], "no")
    lines = shown(told)
    assert lines[0].split("  ")[-1].strip() == "failed"
    assert lines[2].split() == ["logprobs", "-", "-", "11", "1"]
    assert sum("of 9 examples" in line for line in lines) == 8
    assert "  and 4 more" in lines


def test_who_draws_never_waits_for_who_tells() -> None:
    """The drawing thread holds the terminal while it asks for a snapshot; a teller holds the progress and waits for the
    terminal."""
    told, glances = Told(replies("a")), list[object]()
    drawing = threading.Thread(target=lambda: glances.append(told.progress.glance()))

    def out(line: str) -> None:
        drawing.start()
        drawing.join(10)

    told.progress.out = out
    told.end(replies("a"))
    assert glances == [None]
    assert told.progress.glance() is not None
