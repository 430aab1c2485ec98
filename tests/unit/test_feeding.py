"""When groups of training workers come up beside each other, and who gets what: schedule, room and leases are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.schedule import Place, Schedule
from cluster.steps import feeding, training
from cluster.steps.feeding import FIRST, LANE, Feed, Pool
from cluster.work import Needs, Work
from empathy.specs import CheckpointSpec, Full, HubBase, Optimiser, Sft
from empathy.stages import Stage
from empathy.store import Store
from empathy.train.placement import Placement

BASE = Stage(CheckpointSpec(base=HubBase(model="m")), label="base")
HERE = Place(LANE)
ROOM = Needs(8)
SOON_S = 0.3


@pytest.fixture(autouse=True)
def every_stage_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding.check, "stages", lambda *_: None)


def lesson(on: Stage, n: int) -> Stage:
    objective = Sft(optimiser=Optimiser(learning_rate=1e-3, batch_examples=n + 1), tuning=Full())
    return Stage(CheckpointSpec(objective=objective), {"base": on}, label=f"lesson {n}")


def pool(stages: list[Stage], tmp_path: Path, total: Needs = ROOM, **placement: object) -> Pool:
    work = Work(
        Schedule(stages, lambda s: HERE), Store.open(str(tmp_path)), Progress(out=lambda line: None), lambda: total
    )
    return Pool([HERE], work, Placement(**{"device": "cpu", "workers": 1, "groups": 2} | placement))


@pytest.fixture
def ended() -> Iterator[list[Pool]]:
    """Work that is ended after the test, so that no thread waits on."""
    pools = list[Pool]()
    yield pools
    for one in pools:
        one.work.stop()
        one.work.release_all()


def comes(pool: Pool, group: int) -> Callable[[], bool]:
    """Whether `group` is called for by now, or soon is."""
    up = list[bool]()
    thread = pool.work.thread("group", lambda: up.append(pool.called(group)))
    thread.start()

    def came() -> bool:
        thread.join(SOON_S)
        return up == [True]

    return came


def made(pool: Pool, stage: Stage) -> None:
    pool.work.store.writer(stage, pool.work.epoch(stage)).commit()
    pool.work.done(stage)


def test_a_chain_calls_for_no_second_group(tmp_path: Path, ended: list[Pool]) -> None:
    sft = lesson(BASE, 0)
    one = pool([BASE, sft, lesson(sft, 1)], tmp_path)
    ended.append(one)
    assert one.called(FIRST)
    with one.member(FIRST):
        feed, second = Feed(one, FIRST), comes(one, 1)
        for stage in (BASE, sft):
            assert feed.next() == stage
            assert not second()
            made(one, stage)
            assert not second(), "what is ready now is the idle first group's"


def test_a_second_group_comes_up_while_the_first_makes_what_the_others_wait_for(
    tmp_path: Path, ended: list[Pool]
) -> None:
    one = pool([BASE, *(lesson(BASE, n) for n in range(3))], tmp_path)
    ended.append(one)
    second = comes(one, 1)
    assert not second(), "no group is up: it would be the first"
    with one.member(FIRST):
        assert not second()
        assert Feed(one, FIRST).next() == BASE
        assert second()


@pytest.mark.parametrize(("total", "waits"), [(Needs(1), False), (ROOM, True)])
def test_a_second_group_takes_no_room_that_is_not_there_or_that_somebody_waits_for(
    total: Needs, waits: bool, tmp_path: Path, ended: list[Pool]
) -> None:
    one = pool([BASE, *(lesson(BASE, n) for n in range(3))], tmp_path, total)
    ended.append(one)
    with one.member(FIRST):
        if waits:
            asking = one.work.thread("asking", lambda: one.work.room("asking", Needs(8)).__enter__())
            asking.start()
            assert one.work.wait(lambda: one.work.crowded, 20)
        assert Feed(one, FIRST).next() == BASE
        assert not comes(one, 1)()
        if not waits:
            with one.member(1) as entered:  # called for a moment ago, and somebody else was faster
                assert not entered


def test_the_first_group_waits_for_room_no_longer_than_something_is_ready(tmp_path: Path, ended: list[Pool]) -> None:
    one = pool([BASE, lesson(BASE, 0)], tmp_path, Needs(1))
    ended.append(one)
    entered = list[bool]()

    def first() -> None:
        with one.member(FIRST) as came:
            entered.append(came)

    with one.member(1):
        one.came_up(1)
        thread = one.work.thread("first", first)
        thread.start()
        assert one.work.wait(lambda: one.work.crowded, 20)
        assert Feed(one, 1).next() == BASE
        thread.join(20)
        assert entered == [False]
        assert not one.work.crowded
        made(one, BASE)
        assert not comes(one, FIRST)(), "an idle group has its base in memory"


def test_groups_get_different_stages_and_take_ahead_only_what_no_idle_group_wants(
    tmp_path: Path, ended: list[Pool]
) -> None:
    lessons = [lesson(BASE, n) for n in range(3)]
    one = pool([BASE, *lessons], tmp_path)
    ended.append(one)
    with one.member(FIRST):
        first = Feed(one, FIRST)
        assert first.next() == BASE
        with one.member(1):
            made(one, BASE)
            second = Feed(one, 1)
            taken = [first.next()]
            assert one.is_more_than_idle_ones_take(), "two are ready, and one group is idle"
            taken.append(second.next())
            assert one.is_more_than_idle_ones_take()
            taken.append(first.next())
            assert taken == lessons
            assert not one.is_more_than_idle_ones_take()
            assert one.others(FIRST)
        assert not one.others(FIRST)


def test_an_idle_group_gives_way_to_a_first_one_whose_workers_do_not_come(
    tmp_path: Path, ended: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pool([BASE, *(lesson(BASE, n) for n in range(3))], tmp_path)
    ended.append(one)
    with one.member(FIRST):
        assert Feed(one, FIRST).next() == BASE
        with one.member(1):
            one.came_up(1)
            assert not Feed(one, 1).is_over()
            monkeypatch.setattr(feeding, "PENDING_S", 0.0)
            assert Feed(one, 1).is_over()
            assert not Feed(one, FIRST).is_over()
        assert not comes(one, 1)(), "it would be in the way again"
        one.came_up(FIRST)
        assert comes(one, 1)()
        with one.member(1):
            assert not Feed(one, 1).is_over()


@pytest.mark.parametrize("broken", [FIRST, 1])
def test_a_group_that_cannot_be_kept_up_fails_nothing_while_another_one_can(
    broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[Pool]
) -> None:
    lessons = [lesson(BASE, n) for n in range(3)]
    one = pool(lessons, tmp_path)
    one.work.store.writer(BASE).commit()
    ended.append(one)
    tries = list[int]()

    def serve(feed: Feed, first: Stage | None, max_failures: int) -> bool:
        tries.append(feed.group)
        assert one.work.wait(lambda: len(set(tries)) == 2, 20), "each waits for the other"
        if feed.group == broken:
            if first:
                feed.pool.work.back(first)
            return False
        while not feed.is_over():
            if stage := first or feed.next():
                made(one, stage)
            first = None
        return True

    monkeypatch.setattr(training, "_serve", serve)
    training.train_on([HERE], one.work, one.placement, 3)
    assert tries.count(broken) == 1
    assert one.work.schedule.ended
    assert one.work.schedule.failures() == []


def test_what_ends_the_first_group_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[Pool]
) -> None:
    one = pool([lesson(BASE, n) for n in range(3)], tmp_path)
    ended.append(one)

    def serve(feed: Feed, first: Stage | None, max_failures: int) -> bool:
        if feed.group == FIRST:
            raise OSError("the store is away")
        one.work.wait(lambda: False, 20)
        return True

    monkeypatch.setattr(training, "_serve", serve)
    with pytest.raises(OSError, match="the store is away"):
        training.train_on([HERE], one.work, one.placement, 3)
    assert isinstance(one.work.broken, OSError)


def test_a_group_on_a_gpu_takes_its_share_of_it(tmp_path: Path) -> None:
    assert pool([BASE], tmp_path, device="cuda", gpu_share=0.25).needs == Needs(1, 0.25)
    assert pool([BASE], tmp_path, workers=2).needs == Needs(2)
