"""What is left of a run, told from events made by hand against a clock that the test moves."""

from __future__ import annotations

import pytest

from cluster.estimate import Estimate, Left, Sort

SFT = Sort("training", "checkpoint sft", "base")
DPO = Sort("training", "checkpoint dpo", "base")
SCORING = Sort("training", "logprobs", "base")


def estimate(**sorts: Sort) -> Estimate:
    return Estimate(sorts)


def work(e: Estimate, key: str, shares: list[tuple[float, float]]) -> None:
    """Tell (moment, share) of a stage. The clock begins with the first of it, as a bit is done at once."""
    (began, share), *later = shares
    e.taken(key, began)
    e.at(key, share, began)
    for at, done in [(began, share + 1e-9), *later]:
        e.at(key, done, at)


def test_a_quarter_in_ten_seconds_is_twenty_more_and_forty_a_stage() -> None:
    """Coming up, and the first quarter with it, is no work. Two more of the sort: 20 + 2 x 40 = 100 s."""
    e = estimate(a=SFT, b=SFT, c=SFT)
    e.taken("a", 0.0)
    e.at("a", 0.0, 5.0)
    e.at("a", 0.25, 110.0)
    assert e.of_stage("a", 110.0) is None
    assert e.left(110.0) is None
    e.at("a", 0.5, 120.0)
    assert e.of_stage("a", 120.0) == pytest.approx(20.0)
    assert e.left(120.0) == Left(pytest.approx(100.0), at_least=False)


def test_the_time_between_two_stages_belongs_to_the_second() -> None:
    """a: 20 s. b: 4 s of setting up, then 20 s. The mean is 22 s, and one is left."""
    e = estimate(a=SFT, b=SFT, c=SFT)
    work(e, "a", [(0, 0.0), (10, 0.5)])
    e.taken("b", 11)
    assert e.ended("a", 20) == 20
    for at, share in ((24, 0.0), (34, 0.5)):
        e.at("b", share, at)
    e.taken("c", 35)
    assert e.ended("b", 44) == 20
    assert e.left(44) == Left(pytest.approx(22.0), at_least=False)


def test_what_an_earlier_run_had_done_is_not_ours() -> None:
    """Resumed at a half; a tenth took 6 s, so the four tenths left take 24 s, and the whole next one 60 s."""
    e = estimate(a=SFT, b=SFT)
    work(e, "a", [(0, 0.5), (6, 0.6)])
    assert e.of_stage("a", 6) == pytest.approx(24.0)
    assert e.left(6) == Left(pytest.approx(84.0), at_least=False)


def test_a_killed_worker_and_its_restart_change_the_estimate_by_the_work_that_was_lost() -> None:
    """10 % in 10 s. At 80 % it is killed; 60 s later it goes on at 50 %: 50 s there, not hundreds, not none."""
    e = estimate(a=SFT, b=SFT)
    work(e, "a", [(at, at / 100) for at in range(0, 81, 10)])
    assert e.left(80) == Left(pytest.approx(120.0), at_least=False)
    e.rests("training")
    assert e.left(100) == Left(pytest.approx(120.0), at_least=True)  # nobody knows how long they take to come up
    e.at("a", 0.5, 140.0)
    assert e.of_stage("a", 140.0) is None  # nothing has been done since
    assert e.left(140.0) == Left(pytest.approx(150.0), at_least=True)
    e.at("a", 0.6, 150.0)
    assert e.left(150.0) == Left(pytest.approx(140.0), at_least=False)
    e.at("a", 0.7, 160.0)
    assert e.of_stage("a", 160.0) == pytest.approx(30.0)
    assert e.left(160.0) == Left(pytest.approx(130.0), at_least=False)


def test_an_outage_after_which_the_work_goes_on_where_it_was_is_in_no_pace() -> None:
    """A tenth in 10 s, an engine that is away for 80 s, then a tenth in 10 s again: 70 s to go."""
    e = estimate(a=SFT)
    work(e, "a", [(0, 0.0), (10, 0.1)])
    e.rests("training")
    assert e.of_stage("a", 20) is None
    e.at("a", 0.2, 100)
    e.at("a", 0.3, 110)
    assert e.of_stage("a", 110) == pytest.approx(70.0)
    assert e.left(110) == Left(pytest.approx(70.0), at_least=False)


def test_a_worker_that_died_unnoticed_is_seen_by_work_that_goes_backwards() -> None:
    e = estimate(a=SFT)
    work(e, "a", [(0, 0.0), (10, 0.1), (20, 0.2)])
    e.at("a", 0.0, 90.0)
    e.at("a", 0.1, 100.0)
    assert e.left(100.0) == Left(pytest.approx(90.0), at_least=False)


def test_the_pace_is_that_of_the_last_five_minutes() -> None:
    """1 % a second for 30 s, then 0.1 % a second for 400 s: the 30 % left take 300 s."""
    e = estimate(a=SFT)
    work(e, "a", [(float(at), at / 100) for at in range(31)])
    for at in range(2, 401, 2):
        e.at("a", 0.3 + at / 1000, 30.0 + at)
    assert e.of_stage("a", 430.0) == pytest.approx(300.0)
    assert e.left(430.0) == Left(pytest.approx(300.0), at_least=False)


def test_sorts_that_nothing_is_known_of_are_named_and_in_no_sum() -> None:
    e = estimate(a=SFT, b=SFT, c=SFT, d=DPO, e=DPO)
    assert e.left(0) is None
    work(e, "a", [(0, 0.0), (5, 0.5)])
    assert e.left(5) == Left(pytest.approx(25.0), True, ("checkpoint dpo",))
    e.taken("b", 9)
    e.ended("a", 10)
    e.taken("c", 19)
    e.ended("b", 20)
    assert e.left(20) == Left(pytest.approx(10.0), True, ("checkpoint dpo",))
    e.taken("d", 29)
    e.ended("c", 30)
    assert e.left(30) is None  # two DPOs, of which nothing is known
    work(e, "d", [(31, 0.0), (41, 0.5)])  # a second of setting up is part of the pace: 11 s for a half
    assert e.left(41) == Left(pytest.approx(33.0), at_least=False)


def test_too_little_work_tells_nothing() -> None:
    e = estimate(a=SFT)
    work(e, "a", [(0, 0.0), (2, 0.01)])
    assert e.of_stage("a", 2) is None
    assert e.left(2) is None


def test_who_is_silent_may_be_at_anything() -> None:
    """A stage takes 40 s. After 80 s without a word nothing is said; with the next word it is again."""
    e = estimate(a=SFT, b=SFT)
    work(e, "a", [(0, 0.0), (10, 0.25)])
    assert e.left(89) is not None
    assert e.left(91) is None
    assert e.of_stage("a", 91) is None
    e.at("a", 0.5, 95)
    assert e.left(95) is not None


def test_another_model_is_judged_by_the_one_that_is_known() -> None:
    e = estimate(a=SFT, b=Sort("training", "checkpoint sft", "other base"))
    work(e, "a", [(0, 0.0), (10, 0.5)])
    assert e.left(10) == Left(pytest.approx(30.0), at_least=False)


def test_sorts_on_other_threads_are_measured_by_their_own_clock() -> None:
    """A training of 100 s beside an asking of 10 s: 50 + 5 = 55 s, as if one came after the other."""
    e = estimate(a=SFT, q=Sort("asking m", "verdicts", "m"))
    work(e, "a", [(0, 0.0)])
    work(e, "q", [(45, 0.0)])
    e.at("a", 0.5, 50)
    e.at("q", 0.5, 50)
    assert e.left(50) == Left(pytest.approx(55.0), at_least=False)


def test_waiting_for_inputs_is_no_work() -> None:
    e = estimate(a=SFT, b=SFT)
    work(e, "a", [(0, 0.0), (5, 0.5)])
    e.ended("a", 10)
    work(e, "b", [(500, 0.0), (505, 0.5)])
    assert e.left(505) == Left(pytest.approx(5.0), at_least=False)


def test_what_is_given_up_or_made_by_others_is_not_left() -> None:
    e = estimate(a=SFT, b=SFT, c=SFT, d=SFT)
    work(e, "a", [(0, 0.0), (5, 0.5)])
    e.given_up("b")
    assert e.ended("c", 5) is None
    assert e.left(5) == Left(pytest.approx(15.0), at_least=False)
    assert e.done_and_left("training") == (0.5, 1.5)


def test_what_this_process_makes_leaves_nothing_unknown() -> None:
    e = estimate(a=SFT, r=Sort("here", "report"))
    work(e, "a", [(0, 0.0), (5, 0.5)])
    assert e.left(5) == Left(pytest.approx(5.0), at_least=False)


def test_stages_of_unequal_sorts_share_a_thread() -> None:
    """SFT of 20 s, its scoring of 2 s, each with a second of setting up; one of each is left: 20 + 3 = 23 s."""
    e = estimate(a=SFT, b=SCORING, c=SFT, d=SCORING)
    work(e, "a", [(0, 0.0), (20, 1.0)])
    e.taken("b", 1)
    e.ended("a", 20)
    work(e, "b", [(21, 0.0), (23, 1.0)])
    e.taken("c", 22)
    e.ended("b", 23)
    assert e.left(23) == Left(pytest.approx(23.0), at_least=False)
