"""Progress against a clock that the test moves: plain lines, and the view of the whole grid."""

from __future__ import annotations

import io

from rich.console import Console

from cluster.progress import Asked, Progress, clock
from cluster.schedule import Place, Schedule
from empathy.specs import LogprobsSpec, RepliesSpec
from empathy.specs import Recorded as RecordedReplies
from empathy.stages import Stage


def replies(name: str) -> Stage:
    return Stage(RepliesSpec(responder=RecordedReplies(responder=name)), label=name)


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.at_s = 0.0
        self.progress = Progress(out=self.lines.append, now_s=lambda: self.at_s)


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.4, 75, 3700)] == ["0:00", "0:59", "1:15", "1:01:40"]


def test_what_is_left_is_the_mean_of_what_was_taken_by_kind() -> None:
    told, stages = Told(), [replies(n) for n in "abcd"]
    told.progress.begin(stages)
    told.progress.working(stages, "asking")
    told.at_s = 10
    told.progress.finished(stages[0], {"calls": 1200})
    told.at_s = 30
    told.progress.finished(stages[1], {})
    assert told.lines[1] == "[0:10] 1/4 replies    a done (calls 1,200); about 0:30 yet"
    assert told.lines[2] == "[0:30] 2/4 replies    b done; about 0:30 yet"  # mean of 10 and 20, twice


def test_kinds_not_yet_seen_make_it_at_least() -> None:
    told, stages = Told(), [replies("a"), replies("b"), Stage(LogprobsSpec(), label="l")]
    told.progress.begin(stages)
    told.at_s = 8
    told.progress.finished(stages[0], {})
    assert told.lines[-1].endswith("at least 0:08 yet")


def test_a_stage_is_said_to_end_once_and_units_are_rare() -> None:
    told, stage = Told(), Stage(LogprobsSpec(), label="l")
    told.progress.begin([stage])
    for done in (0, 1, 2, 3):
        told.at_s += 1
        told.progress.units(stage, done, 3)
    for _ in range(2):
        told.progress.finished(stage, {})
    assert [line.split("] ")[1] for line in told.lines] == ["0/1 logprobs   l: 0 of 3", "1/1 logprobs   l done"]


def test_time_to_go_within_a_stage() -> None:
    told, stage = Told(), replies("a")
    told.progress.begin([stage])
    told.progress.units(stage, 0, 100)
    told.at_s = 20
    told.progress.units(stage, 25, 100)
    assert told.lines[-1].endswith("a: 25 of 100, 1:00 to go")


def test_failures_are_counted_in_every_line_after_them() -> None:
    told, stages = Told(), [replies("a"), replies("b")]
    told.progress.begin(stages)
    told.progress.failed(stages[0], "no key")
    told.progress.finished(stages[1], {})
    assert told.lines == [
        "[0:00] 0/2 (1 failed) replies    a FAILED: no key",
        "[0:00] 1/2 (1 failed) replies    b done",
    ]


def shown(progress: Progress) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(progress.view())
    return out.getvalue()


def test_the_view_has_every_kind_what_is_in_work_and_the_money() -> None:
    """Two stages ask. Half of the first cost 0.30 dollars, so one and a half, at 0.60 each, are to come: 0.90."""
    told, asking, score = Told(), [replies("a"), replies("b")], Stage(LogprobsSpec(), label="l")
    schedule = told.progress.schedule = Schedule([*asking, score], lambda stage: Place(stage.kind))
    told.progress.begin([*asking, score], {s.key for s in asking})
    schedule.take(Place("replies"))
    schedule.failed(score, "no")
    told.at_s = 10
    told.progress.units(asking[0], 100, 200)
    told.progress.asked(Asked(calls=120, tokens_in=5000, tokens_out=700), 0.5, 0.30)
    view = shown(told.progress)
    table = {line.split()[0]: line.split()[1:] for line in view.splitlines()[:3]}
    assert table["stages"] == ["done", "running", "ready", "waiting", "held", "failed", "behind"]
    assert table["replies"][:7] == ["-", "1", "1", "-", "-", "-", "-"]
    assert table["logprobs"] == ["-", "-", "-", "-", "-", "1", "-"]
    assert "a: 100 of 200" in view
    assert "120 calls, 12.0/s; tokens 5,000 in, 700 out; $0.30 spent, about $0.90 to come; 0:10 gone" in view


def test_calls_a_second_are_those_of_the_last_half_minute_and_an_unknown_price_is_no_number() -> None:
    told = Told()
    told.progress.begin([replies("a")])
    told.progress.asked(Asked(calls=900), 0.0, 1.0)
    told.at_s = 60
    told.progress.asked(Asked(calls=60), 0.1, None)
    assert "960 calls, 2.0/s" in shown(told.progress)
    assert "dollars ? (a price is unknown)" in shown(told.progress)
