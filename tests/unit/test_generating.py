"""Students' replies without an engine: what is whole is committed, with what an earlier engine proved; and a training
worker's commit under a lease that was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lease import try_lease
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Place, Schedule, State
from cluster.steps import generating
from cluster.steps.generating import _Engine
from cluster.steps.student_jobs import Job, already_whole
from cluster.weights import Weights
from cluster.work import Needs, Work
from empathy.records import Dialogue, Reply, Turn
from empathy.specs import CheckpointSpec, DialoguesSpec, HubBase, RandomSplit, RepliesSpec, Student
from empathy.stages import Stage
from empathy.store import FencedError, Store
from empathy.train.bench import Bench
from empathy.train.group import Group
from empathy.train.placement import Placement
from serving.bulk import Completion, StudentRequest, _needed
from serving.diagnosis import EngineFailed

PLACE = Place("generating")
CHECKPOINT = Stage(CheckpointSpec(base=HubBase(model="m")))


def dialogues(store: Store) -> Stage:
    stage = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit(), part_rows=1))
    writer = store.writer(stage)
    for k in range(2):
        writer.write_records(k, [Dialogue(f"d{k}", "g", (Turn("user", "Hello."),))], Dialogue)
    writer.commit()
    return stage


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """Two students of two dialogues in two parts, taken under their leases."""
    store = Store.open(str(tmp_path))
    inputs = {"dialogues": dialogues(store), "checkpoint": CHECKPOINT}
    stages = [Stage(RepliesSpec(responder=Student(max_tokens=n)), inputs) for n in (8, 9)]
    work = Work(Schedule(stages, lambda s: PLACE), store, Progress(out=lambda line: None), lambda: Needs())
    assert len(work.take(PLACE, 2)) == 2
    yield work
    work.release_all()


def job(work: Work, max_tokens: int, name: str) -> Job:
    found = (s for s in work.schedule._stages.values() if s.spec.responder.max_tokens == max_tokens)  # type: ignore[attr-defined]
    return Job(next(found), Weights(name, "base", Path("base"), "template"), work, lambda messages: [1])


def answer(job: Job, parts: int) -> None:
    """Take the replies to the first `parts` dialogues."""
    asked = list(job.requests())
    for request in asked[:parts]:
        _, k, dialogue_id = request.id.split("/")
        job.take(int(k), dialogue_id, Completion(request.id, "Oh.", [1, 2], "stop", 1, 2))


def test_a_stage_is_committed_with_its_last_part_and_told(work: Work) -> None:
    one = job(work, 8, "one")
    one.proved(float("inf"))
    answer(one, 2)
    artifact = work.store.get(one.stage)
    assert [r.text for r in artifact.read(Reply)] == ["Oh.", "Oh."]
    assert artifact.meta["proofs"] == {"adapter alive": "its greedy tokens differ from its base's"}
    assert work.schedule.state(one.stage) is State.DONE


def test_what_lacks_only_its_commit_needs_no_engine(work: Work) -> None:
    """The first maker is gone after its last part: its proof is kept for who commits."""
    gone = job(work, 8, "one")
    gone.proved(0.25)
    gone.commit = lambda: None  # type: ignore[method-assign]  # killed here
    answer(gone, 2)
    assert not work.store.done(gone.stage)
    next_one = job(work, 8, "one")
    assert already_whole(next_one)
    assert work.store.get(next_one.stage).meta["proofs"] == {"adapter alive": "it changes log-probabilities by 0.25"}
    half = job(work, 9, "two")
    answer(half, 1)
    assert not already_whole(job(work, 9, "two"))


class Taken:
    """Stands for a running engine: what it says of the adapters that it is asked to load."""

    def __init__(self, said: dict[str, float | str]):
        self.said, self.asked = said, list[dict[str, str]]()

    def load(self, adapters: dict[str, str], on_loss: object) -> dict[str, float | str]:
        self.asked.append(adapters)
        return {name: self.said[name] for name in adapters}


def tuned(work: Work, max_tokens: int, name: str) -> Job:
    found = job(work, max_tokens, name)
    found.weights = Weights(name, "base", Path("base"), "template", Path("adapters") / name)
    return found


def test_a_refused_student_fails_alone_and_a_loaded_one_is_not_loaded_again(work: Work) -> None:
    engine, taken = (
        _Engine(PLACE, work, Profile(), is_last_try=True),
        Taken({"one": 0.5, "two": "adapter 'two' is dead"}),
    )
    jobs = [tuned(work, 8, "one"), tuned(work, 9, "two")]
    assert engine._loaded(jobs, taken) == jobs[:1]  # type: ignore[arg-type]
    assert [work.schedule.state(j.stage) for j in jobs] == [State.RUNNING, State.FAILED]
    assert engine._loaded(jobs[:1], taken) == jobs[:1]  # type: ignore[arg-type]
    assert taken.asked == [{"one": "adapters/one", "two": "adapters/two"}]


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (["s2", "s1", "s2"], {"s1": "f1", "s2": "f2"}),
        (["base", "s2"], {"s2": "f2"}),
        (["base", "base"], {"s1": "f1"}),  # else a new replica would answer it bare, beside others' adapters
    ],
)
def test_a_chunk_travels_with_the_adapters_that_a_new_replica_needs_for_it(
    asked: list[str], taken: dict[str, str]
) -> None:
    chunk = [StudentRequest(str(k), name, [1], 8) for k, name in enumerate(asked)]
    assert _needed(chunk, {"s1": "f1", "s2": "f2"}) == taken
    assert _needed(chunk, {}) == {}


@pytest.mark.parametrize(
    ("error", "last_try", "state", "put_off"),
    [
        (EngineFailed("too little memory"), False, State.READY, True),  # whoever is up gives its own back
        (EngineFailed("too little memory"), True, State.FAILED, False),
        (ValueError("heads of 24 numbers"), False, State.FAILED, False),  # so it would be later
    ],
)
def test_an_engine_that_does_not_start_is_tried_again(
    work: Work, monkeypatch: pytest.MonkeyPatch, error: Exception, last_try: bool, state: State, put_off: bool
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(generating, "start_engine", fails)
    monkeypatch.setattr(
        generating, "prepared", lambda stage, work, cache: job(work, stage.spec.responder.max_tokens, "n")
    )
    monkeypatch.setattr(Weights, "max_model_len", lambda self, at_most: at_most)
    stages = work.schedule.at(PLACE, [State.RUNNING])
    with _Engine(PLACE, work, Profile(), last_try) as engine:
        engine.make(stages)
        assert engine.is_over is engine.is_put_off is put_off
    assert [work.schedule.state(stage) for stage in stages] == [state, state]


def test_a_training_worker_whose_lease_was_taken_over_cannot_commit(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    first = try_lease(store, CHECKPOINT)
    assert first is not None
    bench = Bench(store, Group(0, 1, 0, "cpu"), Placement(), tmp_path, lambda *_: None, first.epoch)
    first.release()
    second = try_lease(store, CHECKPOINT)
    assert second is not None
    with pytest.raises(FencedError, match="epoch 2 has taken over from our 1"):
        bench.writer(CHECKPOINT).commit()
    second.release()
    assert not store.done(CHECKPOINT)
