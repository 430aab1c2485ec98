"""Students' replies without an engine: what is whole is committed, with what an earlier engine proved; and a training
worker's commit under a lease that was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lease import try_lease
from cluster.progress import Progress
from cluster.schedule import Place, Schedule, State
from cluster.steps.generating import _already_whole, _Job, _without_culprit
from cluster.weights import Weights
from cluster.work import Needs, Work
from empathy.records import Dialogue, Reply, Turn
from empathy.specs import CheckpointSpec, DialoguesSpec, HubBase, RandomSplit, RepliesSpec, Student
from empathy.stages import Stage
from empathy.store import FencedError, Store
from empathy.train.bench import Bench
from empathy.train.group import Group
from empathy.train.placement import Placement
from serving.bulk import Completion

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
    place = Place("generating")
    work = Work(Schedule(stages, lambda s: place), store, Progress(out=lambda line: None), lambda: Needs())
    assert len(work.take(place, 2)) == 2
    yield work
    work.release_all()


def job(work: Work, max_tokens: int, name: str) -> _Job:
    found = (s for s in work.schedule._stages.values() if s.spec.responder.max_tokens == max_tokens)  # type: ignore[attr-defined]
    return _Job(next(found), Weights(name, "base", Path("base"), "template"), work, lambda messages: [1])


def answer(job: _Job, parts: int) -> None:
    """Take the replies to the first `parts` dialogues."""
    asked = list(job.requests())
    for request in asked[:parts]:
        _, k, dialogue_id = request.id.split("/")
        job.take(int(k), dialogue_id, Completion(request.id, "Oh.", [1, 2], "stop", 1, 2))


def test_a_stage_is_committed_with_its_last_part_and_told(work: Work) -> None:
    one = job(work, 8, "one")
    one.proved({"one": float("inf")})
    answer(one, 2)
    artifact = work.store.get(one.stage)
    assert [r.text for r in artifact.read(Reply)] == ["Oh.", "Oh."]
    assert artifact.meta["proofs"] == {"adapter alive": "its greedy tokens differ from its base's"}
    assert work.schedule.state(one.stage) is State.DONE


def test_what_lacks_only_its_commit_needs_no_engine(work: Work) -> None:
    """The first maker is gone after its last part: its proof is kept for who commits."""
    gone = job(work, 8, "one")
    gone.proved({"one": 0.25})
    gone.commit = lambda: None  # type: ignore[method-assign]  # killed here
    answer(gone, 2)
    assert not work.store.done(gone.stage)
    next_one = job(work, 8, "one")
    assert _already_whole(next_one)
    assert work.store.get(next_one.stage).meta["proofs"] == {"adapter alive": "it changes log-probabilities by 0.25"}
    half = job(work, 9, "two")
    answer(half, 1)
    assert not _already_whole(job(work, 9, "two"))


def test_a_refused_student_fails_alone_and_nobody_is_spared_when_none_is_named(work: Work) -> None:
    jobs = [job(work, 8, "one"), job(work, 9, "two")]
    assert _without_culprit(jobs, ValueError("adapter 'two' changes nothing"), work) == jobs[:1]
    assert work.schedule.state(jobs[1].stage) is State.FAILED
    assert _without_culprit(jobs[:1], ValueError("chat_template: ..."), work) == []


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
