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


def joins(pool: Pool, group: int) -> Callable[[], bool]:
    """Whether `group` has come up by now, or soon does."""
    up = list[bool]()
    thread = pool.work.thread("group", lambda: up.append(pool.join(group)))
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
    assert one.join(FIRST)
    with one.work.room(LANE, one.needs):
        feed, second = Feed(one, FIRST), joins(one, 1)
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
    second = joins(one, 1)
    assert not second(), "no group is up: it would be the first"
    assert one.join(FIRST)
    with one.work.room(LANE, one.needs):
        assert not second()
        assert Feed(one, FIRST).next() == BASE
        assert second()


@pytest.mark.parametrize(("total", "waits"), [(Needs(1), False), (ROOM, True)])
def test_a_second_group_takes_no_room_that_is_not_there_or_that_somebody_waits_for(
    total: Needs, waits: bool, tmp_path: Path, ended: list[Pool]
) -> None:
    one = pool([BASE, *(lesson(BASE, n) for n in range(3))], tmp_path, total)
    ended.append(one)
    assert one.join(FIRST)
    with one.work.room(LANE, one.needs):
        if waits:
            asking = one.work.thread("asking", lambda: one.work.room("asking", Needs(8)).__enter__())
            asking.start()
            assert one.work.wait(lambda: one.work.crowded, 20)
        assert Feed(one, FIRST).next() == BASE
        assert not joins(one, 1)()


def test_groups_get_different_stages_and_take_ahead_only_what_no_idle_group_wants(
    tmp_path: Path, ended: list[Pool]
) -> None:
    lessons = [lesson(BASE, n) for n in range(3)]
    one = pool([BASE, *lessons], tmp_path)
    ended.append(one)
    assert one.join(FIRST)
    with one.work.room(LANE, one.needs):
        first = Feed(one, FIRST)
        assert first.next() == BASE
        assert one.join(1)
        made(one, BASE)
        second = Feed(one, 1)
        taken = [first.next()]
        assert one.is_more_than_idle_ones_take(), "two are ready, and one group is idle"
        taken.append(second.next())
        assert one.is_more_than_idle_ones_take()
        taken.append(first.next())
        assert taken == lessons
        assert not one.is_more_than_idle_ones_take()
        one.leave(1)
        assert not one.is_more_than_idle_ones_take()


def test_a_group_beside_the_first_that_cannot_be_kept_up_fails_nothing_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[Pool]
) -> None:
    lessons = [lesson(BASE, n) for n in range(3)]
    one = pool([BASE, *lessons], tmp_path)
    ended.append(one)
    tries = list[int]()

    def serve(feed: Feed, first: Stage | None, max_failures: int) -> bool:
        tries.append(feed.group)
        if feed.group != FIRST:
            if first:
                feed.pool.work.back(first)
            return False
        while not feed.is_over():
            stage = first or feed.next()
            first = None
            if stage:
                one.work.wait(lambda: 1 in tries, 20)
                made(one, stage)
        return True

    monkeypatch.setattr(training, "_serve", serve)
    training.train_on([HERE], one.work, one.placement, 3)
    assert tries.count(1) == 1
    assert one.work.schedule.ended
    assert one.work.schedule.failures() == []


def test_a_group_on_a_gpu_takes_its_share_of_it(tmp_path: Path) -> None:
    assert pool([BASE], tmp_path, device="cuda", gpu_share=0.25).needs == Needs(1, 0.25)
    assert pool([BASE], tmp_path, workers=2).needs == Needs(2)
