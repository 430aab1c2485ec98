"""Progress lines against a clock that the test moves."""

from __future__ import annotations

from cluster.progress import Progress, clock
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
    told.progress.finished(stage, {})
    assert [line.split("] ")[1] for line in told.lines] == ["0/1 logprobs   l: 0 of 3", "1/1 logprobs   l done"]


def test_time_to_go_within_a_stage() -> None:
    told, stage = Told(), replies("a")
    told.progress.begin([stage])
    told.progress.units(stage, 0, 100)
    told.at_s = 20
    told.progress.units(stage, 25, 100)
    assert told.lines[-1].endswith("a: 25 of 100, 1:00 to go")
