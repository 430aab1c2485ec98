"""The scheduler with lanes that only commit: what runs beside what, what a failure stops, what another run holds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from cluster import executors, runner
from cluster.executors import Context, Lane, sort_of
from cluster.lease import Lease, is_free, try_lease
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Place, Schedule, State
from cluster.steps.generating import _due, _early
from cluster.work import Needs, StoppedError, Work
from empathy.lower import lower
from empathy.specs import DialoguesSpec, LogprobsSpec, PaperSplit, ReportSpec
from empathy.stages import LastingError, Stage, walk
from empathy.store import Store
from serving.budget import BudgetSpent
from serving.providers import ProviderDown
from tests.experiments import tiny

SOURCE = Stage(DialoguesSpec(source="jsonl", digest="0", split=PaperSplit()), label="source")


def stage(name: str, *inputs: Stage) -> Stage:
    """A stage of kind report, told from others by its name."""
    return Stage(
        ReportSpec(seed=int.from_bytes(name.encode())), {s.label: s for s in inputs} or {"source": SOURCE}, label=name
    )


def score(name: str, *inputs: Stage) -> Stage:
    """One of kind logprobs: another lane's."""
    return Stage(
        LogprobsSpec(max_length_tokens=1000 + int.from_bytes(name.encode())), {s.label: s for s in inputs}, label=name
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def context(store: Store) -> Context:
    return Context(store, Profile(), Progress(out=lambda line: None))


def commit(store: Store, made: Stage) -> None:
    store.writer(made).commit()


def lane(name: str, kinds: Sequence[str], make: Callable[[Stage, Store], None], at_most: int = 1) -> Lane:
    """A lane of stages of `kinds` that makes each with `make`."""

    def loop(places: Sequence[Place], work: Work, context: Context) -> None:
        while batch := work.next(places, at_most):
            work.make(batch, lambda stages: [make(s, context.store) for s in stages])

    return Lane(name, lambda s: "" if s.kind in kinds else None, loop, on_ray=lambda context: False)


def one_lane(make: Callable[[Stage, Store], None], at_most: int = 1) -> list[Lane]:
    return [
        lane(
            "all", ("dialogues", "report", "logprobs"), lambda s, store: (make(s, store), commit(store, s))[0], at_most
        )
    ]


def nothing(made: Stage, store: Store) -> None:
    pass


# ---------------------------------------------------------------- order


def test_inputs_come_first_and_the_longest_chain_before_the_rest(store: Store) -> None:
    seen: list[str] = []
    a, leaf = stage("a"), stage("leaf")
    b = stage("b", a)
    end = stage("end", b, leaf)
    done = runner.run([end], context(store), one_lane(lambda s, _: seen.append(s.label)))
    assert seen == ["source", "a", "b", "leaf", "end"]
    assert done == runner.Outcome(5)


def test_lanes_work_side_by_side(store: Store) -> None:
    """Each of two lanes waits, inside its stage, until the other is inside its own."""
    meeting = threading.Barrier(2, timeout=20)

    def meet(made: Stage, store: Store) -> None:
        meeting.wait()
        commit(store, made)

    end = stage("end", stage("a"), score("b", SOURCE))
    lanes = [
        lane("source", ("dialogues",), lambda s, store: commit(store, s)),
        lane("reports", ("report",), lambda s, store: commit(store, s) if s == end else meet(s, store)),
        lane("scores", ("logprobs",), meet),
    ]
    assert runner.run([end], context(store), lanes).made == 4


def test_what_is_finished_is_neither_made_nor_looked_below(store: Store) -> None:
    a = stage("a")
    commit(store, a)
    seen: list[str] = []
    runner.run([stage("b", a)], context(store), one_lane(lambda s, _: seen.append(s.label)))
    assert seen == ["b"]


# ---------------------------------------------------------------- failures


def test_a_failed_stage_stops_its_own_branch_and_says_how_much_waits(store: Store) -> None:
    bad = stage("bad")
    behind = stage("behind", bad)
    end = stage("end", behind, stage("good"))

    def make(made: Stage, store: Store) -> None:
        if made == bad:
            raise ValueError("seed = 7: try another")

    done = runner.run([end], context(store), one_lane(make))
    assert done.made == 2  # source and good
    assert [(f.stage.label, f.why, f.behind) for f in done.failures] == [("bad", "seed = 7: try another", 2)]
    assert done.open == 3
    assert store.done(stage("good"))
    assert not store.done(behind)


def test_what_waits_behind_two_failures_is_counted_once(store: Store) -> None:
    """a and b fail, and are the inputs of one stage, on which another stands: four are not made."""
    a, b = stage("a"), stage("b")
    end = stage("end", stage("both", a, b))

    def make(made: Stage, store: Store) -> None:
        if made in (a, b):
            raise ValueError("no")

    done = runner.run([end], context(store), one_lane(make))
    assert sorted(f.behind for f in done.failures) == [2, 2]
    assert done.open == 4


def test_a_run_that_fails_before_anything_needs_ray_does_not_start_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: object) -> NoReturn:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runner, "ray_session", start)
    bad = stage("bad")

    def make(made: Stage, store: Store) -> None:
        if made == bad:
            raise LastingError("max_dropped = 0.2: too many")
        commit(store, made)

    here = lane("here", ("dialogues", "report"), make)
    on_ray = replace(lane("training", ("logprobs",), lambda s, store: commit(store, s)), on_ray=lambda context: True)
    done = runner.run([score("behind", bad)], context(store), [here, on_ray])
    assert [(f.stage, f.behind, f.lasting) for f in done.failures] == [(bad, 1, True)]


def test_one_of_a_batch_fails_alone(store: Store) -> None:
    """The batch is made again one by one; what it had committed is not made twice."""
    names = "abcdef"
    stages = [stage(n) for n in names]
    made: list[str] = []

    def make(one: Stage, store: Store) -> None:
        if one.label == "c":
            raise RuntimeError("boom")
        if not store.done(one):
            made.append(one.label)
            commit(store, one)

    lanes = [lane("all", ("dialogues", "report"), make, at_most=10)]
    done = runner.run(stages, context(store), lanes)
    assert [f.stage.label for f in done.failures] == ["c"]
    assert "RuntimeError: boom" in done.failures[0].why
    assert sorted(made) == ["a", "b", "d", "e", "f", "source"]


def test_a_provider_that_is_down_fails_the_whole_batch_at_once(store: Store) -> None:
    tried: list[int] = []

    def loop(places: Sequence[Place], work: Work, context: Context) -> None:
        def ask(batch: Sequence[Stage]) -> None:
            tried.append(len(batch))
            raise ProviderDown("provider 'x' is down")

        while batch := work.next(places, 10):
            work.make(batch, ask)

    lanes = [
        lane("rest", ("dialogues", "report"), lambda s, store: commit(store, s)),
        Lane("asking", lambda s: "" if s.kind == "logprobs" else None, loop, on_ray=lambda c: False),
    ]
    targets = [score("a", SOURCE), score("b", SOURCE), stage("fine")]
    done = runner.run(targets, context(store), lanes)
    assert tried == [2]
    assert {f.stage.label for f in done.failures} == {"a", "b"}
    assert store.done(targets[2])


def test_a_spent_budget_leaves_what_asks_and_the_rest_is_finished(store: Store) -> None:
    def spent(made: Stage, store: Store) -> None:
        raise BudgetSpent("the cap of $1.00 is reached")

    paid = score("paid", SOURCE)
    lanes = [
        lane("rest", ("dialogues", "report"), lambda s, store: commit(store, s)),
        lane("paid", ("logprobs",), spent),
    ]
    done = runner.run([stage("end", paid), stage("free")], context(store), lanes)
    assert [(f.stage.label, f.left, f.behind) for f in done.failures] == [("paid", True, 1)]
    assert store.done(stage("free"))


def test_a_bad_source_is_raised_and_nothing_else_is_begun(store: Store) -> None:
    seen: list[str] = []

    def make(made: Stage, store: Store) -> None:
        seen.append(made.label)
        raise ValueError("data.source: it is empty")

    with pytest.raises(ValueError, match="it is empty"):
        runner.run([stage("a")], context(store), one_lane(make))
    assert seen == ["source"]


def test_what_breaks_a_lane_itself_is_raised(store: Store) -> None:
    def loop(places: Sequence[Place], work: Work, context: Context) -> None:
        work.next(places)
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        runner.run([SOURCE], context(store), [Lane("all", lambda s: "", loop, on_ray=lambda c: False)])
    assert is_free(store, SOURCE), "its lease was given back"


def test_sigterm_ends_the_run_and_gives_the_leases_back(store: Store) -> None:
    begun = threading.Event()

    def hang(made: Stage, store: Store) -> None:
        begun.set()
        time.sleep(3600)

    def end() -> None:
        begun.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    runner_ending, runner.ENDING_S = runner.ENDING_S, 0.1
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run([SOURCE], context(store), one_lane(hang))
    finally:
        runner.ENDING_S = runner_ending
    assert signal.getsignal(signal.SIGTERM) is before
    assert is_free(store, SOURCE)


# ---------------------------------------------------------------- other runs


def test_two_runs_share_the_work_and_each_stage_has_one_maker(store: Store) -> None:
    stages = [stage(f"s{k}") for k in range(20)]
    end = stage("end", *stages)
    made: list[str] = []

    def make(one: Stage, store: Store) -> None:
        time.sleep(0.01)
        made.append(one.label)

    outcomes: list[runner.Outcome] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(runner.run([end], context(store), one_lane(make, 3))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == sorted(["source", "end", *(s.label for s in stages)])
    assert sum(o.made for o in outcomes) == 22
    assert store.done(end)


def test_what_another_run_finished_a_moment_ago_is_not_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether it is done and the lease."""
    made = list[str]()

    def late(store: Store, wanted: Stage) -> Lease | None:
        commit(store, wanted)  # by the other run, whose lease is gone by now
        return try_lease(store, wanted)

    monkeypatch.setattr("cluster.work.try_lease", late)
    outcome = runner.run([SOURCE], context(store), one_lane(lambda s, _: made.append(s.label)))
    assert (outcome.made, made) == (0, [])


def test_a_stage_in_other_hands_is_made_when_its_holder_lets_go(store: Store) -> None:
    held = try_lease(store, stage("a"))
    assert held is not None
    threading.Timer(0.5, held.release).start()
    assert runner.run([stage("a")], context(store), one_lane(nothing)).made == 2


# ---------------------------------------------------------------- room


def test_room_is_shared_and_whoever_is_alone_is_let_in(store: Store) -> None:
    work = Work(Schedule([], lambda s: Place("x")), store, Progress(), lambda: Needs(4, 1))
    seen: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def hold(who: str, needs: Needs) -> None:
        with work.room(who, needs):
            seen.append(who)
            inside.set()
            leave.wait(20)

    big = threading.Thread(target=hold, args=("big", Needs(99, 9)))  # more than there is: alone it may
    big.start()
    assert inside.wait(20)
    assert not work.crowded
    small = threading.Thread(target=hold, args=("small", Needs(1, 0)))
    small.start()
    with work.room("free", Needs()):  # takes nothing, so it need not wait
        while not work.crowded:
            time.sleep(0.01)
    assert seen == ["big"]
    leave.set()
    small.join(20)
    assert seen == ["big", "small"]
    work.stop()
    with pytest.raises(StoppedError), work.room("late", Needs(1)):
        pass


def test_examples_that_ray_shards_wait_for_a_cpu_so_that_whoever_is_idle_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that waits for these very examples may hold every CPU."""
    examples = stage("examples")
    monkeypatch.setattr(executors.here, "is_sharded", lambda *_: True)
    monkeypatch.setattr(executors.here, "make", lambda stage, store, *_: commit(store, stage))
    work = Work(Schedule([examples], lambda s: Place("here")), store, Progress(out=lambda line: None), lambda: Needs(2))
    thread = work.thread("here", lambda: executors._here([Place("here")], work, context(store)))
    with work.room("training", Needs(2)):
        thread.start()
        assert work.wait(lambda: work.crowded, 20)
        assert not store.done(examples)
    thread.join(20)
    assert store.done(examples)
    work.release_all()


# ---------------------------------------------------------------- the engine's rule


def engines() -> tuple[Schedule, dict[str, Stage], list[Place]]:
    """Two students of base A, one of base B; their checkpoints are reports here, their replies logprobs."""
    ckpt = {n: stage(n) for n in ("a1", "a2", "b1")}
    replies = {f"r{n}": score(f"r{n}", s) for n, s in ckpt.items()}
    places = {"a": Place("generating", "A"), "b": Place("generating", "B")}
    schedule = Schedule(
        [*ckpt.values(), *replies.values()],
        lambda s: Place("training") if s.kind == "report" else places[s.label[1]],
    )
    return schedule, ckpt | replies, list(places.values())


def test_an_engine_waits_for_the_last_checkpoint_of_its_base() -> None:
    schedule, s, (a, b) = engines()
    assert schedule.take(Place("training")) is not None
    schedule.done(s["a1"])
    assert _due([a, b], schedule) is None
    schedule.done(s["b1"])
    assert _due([a, b], schedule) == b
    schedule.done(s["a2"])
    assert schedule.count([State.READY], a) == 2


def test_an_engine_starts_when_what_is_missing_has_failed_or_is_in_other_hands() -> None:
    schedule, s, (a, b) = engines()
    schedule.done(s["a1"])
    schedule.failed(s["a2"], "no")
    assert _due([a, b], schedule) == a
    schedule, s, (a, b) = engines()
    schedule.done(s["a1"])
    for _ in range(2):
        held = schedule.take(Place("training"))
        assert held is not None
        schedule.hold(held)
    assert _due([a, b], schedule) == a, "nothing else can run here"


def test_an_engine_comes_up_beside_a_training_where_it_is_in_nobodys_way(store: Store) -> None:
    schedule, s, (a, b) = engines()
    work = Work(schedule, store, Progress(), lambda: Needs(3, 1))
    schedule.done(s["a1"])
    assert _early([a, b], work, Needs(1)) is None, "no training is up: what trains comes first"
    with work.room("training", Needs(2, 1)):
        assert _early([a, b], work, Needs(1)) == a
        assert _early([b], work, Needs(1)) is None, "none of its students is ready"
        assert _early([a, b], work, Needs(1, 1)) is None, "the training has the GPU"
        waiting = work.thread("asking", lambda: work.room("asking", Needs(2)).__enter__())
        waiting.start()
        assert work.wait(lambda: work.crowded, 20)
        assert _early([a, b], work, Needs(1)) is None, "somebody waits for the room"
        work.stop()
        waiting.join(20)


def test_stages_that_take_as_long_as_each_other_are_of_one_sort(tmp_path: Path) -> None:
    stages = list(walk([lower(tiny(tmp_path)).report]))
    found = Counter((sort.thread, sort.what) for sort in map(sort_of, stages))
    assert found == {
        ("here", "dialogues"): 2,
        ("here", "recorded replies"): 1,
        ("here", "examples"): 5,
        ("here", "report"): 1,
        ("asking embedded rule-teacher-1", "teacher replies"): 1,
        ("asking embedded rule-judge-1", "verdicts"): 8,
        ("training", "checkpoints (raised)"): 1,
        ("training", "checkpoints (sft)"): 1,
        ("training", "checkpoints (dpo)"): 1,
        ("training", "logprobs (train dpo)"): 1,
        ("training", "logprobs (heldout sft)"): 3,
        ("training", "logprobs (heldout dpo)"): 3,
        ("generating", "student replies"): 3,
    }
    (base,) = {sort.model for sort in map(sort_of, stages) if sort.thread == "training"}
    assert base == next(s.key for s in stages if s.kind == "checkpoint")
