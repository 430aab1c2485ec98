"""The lanes of whole runs over random grids, with engines and trainings that take milliseconds: every stage ends, no
base has its engine started more than twice, a student at fault fails alone. Lanes, room, leases and store are real."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from cluster.executors import Context, place_of
from cluster.profile import Asking, Profile, ProviderPlace, Training
from cluster.progress import Progress
from cluster.schedule import Place, Schedule
from cluster.steps import asking_lane, generating, training
from cluster.steps.feeding import FIRST, Feed, Pool
from cluster.weights import Weights
from cluster.work import Needs, Work
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Full,
    HubBase,
    Judge,
    Lora,
    Optimiser,
    RandomSplit,
    RepliesSpec,
    ReportSpec,
    Sft,
    Student,
    Teacher,
    VerdictsSpec,
)
from empathy.stages import Stage
from empathy.store import Store
from empathy.train.bench import adapter_of, base_of
from serving.app import EngineFailed, StudentSet
from serving.bulk import Completion, StudentRequest

HANGS_S = 20.0
DIALOGUES = Stage(DialoguesSpec(source="test", digest="0" * 64, split=RandomSplit()))
JUDGE = Judge(provider="own", model="j", template="t")
OPTIMISER = Optimiser(learning_rate=1e-3)


def name_of(checkpoint: Stage) -> str:
    return checkpoint.key[:16]


def grid(r: random.Random) -> list[Stage]:
    """One or two bases, each with up to four students, of adapters or of weights of their own, answered and judged."""
    stages = list[Stage]()

    def answered(checkpoint: Stage, seed: int) -> None:
        replies = Stage(RepliesSpec(responder=Student(seed=seed)), {"dialogues": DIALOGUES, "checkpoint": checkpoint})
        stages.extend([replies, Stage(VerdictsSpec(judge=JUDGE), {"dialogues": DIALOGUES, "a": replies})])

    for b in range(r.choice([1, 2])):
        base = Stage(CheckpointSpec(base=HubBase(model=f"m{b}")))
        stages.append(base)
        answered(base, 0)
        tuning = r.choice([Lora(), Lora(), Full()])
        for n in range(r.randint(1, 4)):
            teacher = RepliesSpec(responder=Teacher(provider="embedded", model="t", turns=("x",), seed=10 * b + n))
            asked = Stage(teacher, {"dialogues": DIALOGUES})
            examples = Stage(ReportSpec(seed=10 * b + n), {"replies": asked})
            objective = Sft(optimiser=OPTIMISER, tuning=tuning)
            student = Stage(CheckpointSpec(objective=objective, seed=n), {"base": base, "examples": examples})
            stages.extend([asked, examples, student])
            for seed in range(r.choice([1, 2])):
                answered(student, seed)
    return stages


class Answers:
    """Stands for a `Job`: two dialogues."""

    def __init__(self, stage: Stage, work: Work):
        checkpoint = stage.inputs["checkpoint"]
        adapter = Path("adapter") if adapter_of(checkpoint) else None
        base = base_of(checkpoint) if adapter else checkpoint
        self.weights = Weights(name_of(checkpoint), base.key, Path("base"), "template", adapter)
        self.stage, self.student, self._work, self._left = stage, name_of(checkpoint), work, {"0", "1"}

    def proved(self, change: float | None) -> None:
        assert (change is None) is (self.weights.adapter is None)

    def tell(self) -> None:
        self._work.progress.units(self.stage, 2 - len(self._left), 2)

    def requests(self) -> Iterator[StudentRequest]:
        return (StudentRequest(f"{self.stage.key}/0/{d}", self.student, [1], 8) for d in sorted(self._left))

    def take(self, k: int, dialogue_id: str, answer: Completion) -> None:
        self._left.remove(dialogue_id)
        if not self._left:
            commit(self._work, [self.stage])


def commit(work: Work, stages: Iterable[Stage]) -> None:
    for stage in stages:
        time.sleep(0.001)
        work.store.writer(stage, work.epoch(stage)).commit()
        work.done(stage)


class Engine:
    """Stands for engines that are up: it has as many places for adapters as it was given, and knows who is dead."""

    up = 0
    dead: frozenset[str] = frozenset()
    reached: Callable[[str], None] = staticmethod(lambda moment: None)
    """Hears of what it is asked to do, before it does it."""

    def __init__(self, students: StudentSet):
        self._students, self._loaded, self._stopped = students, set[str](), False

    def __enter__(self) -> Engine:
        Engine.up += 1
        return self

    def __exit__(self, *_: object) -> None:
        Engine.up -= 1
        self.stop()

    def stop(self) -> None:
        self._stopped = True

    def _live(self, moment: str, on_loss: Callable[[], None]) -> None:
        time.sleep(0.001)
        Engine.reached(moment)
        if self._stopped:  # whoever asks meets replicas that die
            on_loss()
            raise AssertionError("it was asked again")

    def load(self, adapters: Mapping[str, str], on_loss: Callable[[], None]) -> dict[str, float | str]:
        self._live("load", on_loss)
        self._loaded |= adapters.keys() - self.dead
        assert len(self._loaded) <= self._students.later
        return {name: f"adapter {name!r} is dead" if name in self.dead else 0.5 for name in adapters}

    def generate(
        self, requests: Iterable[StudentRequest], adapters: Mapping[str, str], on_loss: Callable[[], None]
    ) -> Iterator[Completion]:
        for request in requests:
            self._live("generate", on_loss)
            assert request.student == self._students.base_name or request.student in adapters.keys() & self._loaded
            yield Completion(request.id, "Oh.", [1], "stop", 1, 1)


class Run:
    """All lanes of one run over `stages`."""

    def __init__(self, stages: Sequence[Stage], store: Store, r: random.Random):
        self.total, self.lines = Needs(r.choice([1, 2, 3, 4, 8])), list[str]()
        judge = ProviderPlace(engine="m") if r.random() < 0.5 else ProviderPlace(base_url="http://127.0.0.1:9")
        workers, self.groups = r.choice([1, 2]), r.choice([1, 1, 2, 3])
        profile = Profile(
            ask=Asking(workers=r.choice([0, 1])), train=Training(workers=workers), providers={"own": judge}
        )
        progress = Progress(out=self.lines.append)
        self.work = Work(Schedule(stages, place_of), store, progress, lambda: self.total)
        self.context = Context(store, profile, progress)
        places = defaultdict[str, list[Place]](list)
        for place in self.work.schedule.places():
            places[place.lane if place.lane != "asking" else str(place)].append(place)
        self.threads = [self._thread(lane, found) for lane, found in places.items()]

    def _thread(self, lane: str, places: Sequence[Place]) -> threading.Thread:
        loops: dict[str, Callable[[], None]] = {
            "here": lambda: self._here(places),
            "training": lambda: self._train(places),
            "generating": lambda: generating.loop(places, self.work, self.context),
        }
        return self.work.thread(lane, loops.get(lane, lambda: asking_lane.loop(places, self.work, self.context)))

    def _here(self, places: Sequence[Place]) -> None:
        while stages := self.work.next(places, 1):
            commit(self.work, stages)

    def _train(self, places: Sequence[Place]) -> None:
        """As `training.train_on` feeds groups."""
        pool = Pool(places, self.work, training.placement_of(self.context.profile))
        beside = [self.work.thread(f"group {k}", partial(self._group, pool, k)) for k in range(1, self.groups)]
        for thread in beside:
            thread.start()
        self._group(pool, FIRST)
        for thread in beside:
            thread.join()

    def _group(self, pool: Pool, group: int) -> None:
        while pool.called(group):
            with pool.member(group) as entered:
                feed = Feed(pool, group)
                pool.came_up(group)
                while entered and not feed.is_over():
                    while stage := feed.next():
                        time.sleep(0.004)
                        commit(self.work, [stage])
                    time.sleep(0.001)

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def follow(self) -> None:
        """Until every stage has ended, or the run has; then the lanes must end."""
        until = time.monotonic() + HANGS_S
        while not self.work.stopping and not self.work.wait(lambda: self.work.schedule.ended, 0.02):
            assert time.monotonic() < until, self.lines
            self.work.look_again()
        if not self.work.schedule.ended:
            self.work.stop()
        for thread in self.threads:
            thread.join(HANGS_S)
        assert not [thread.name for thread in self.threads if thread.is_alive()]
        self.work.release_all()
        assert self.work.broken is None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path))
    store.writer(DIALOGUES).commit()
    return store


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each base's engine was started. Everything that takes more than a moment is replaced."""
    started = Counter[str]()

    def start(students: StudentSet, resources: object, begun: Callable[[Engine], None]) -> Engine:
        started[str(students.base_name)] += 1
        assert Engine.up == 0
        engine = Engine(students)
        begun(engine)
        time.sleep(0.01)
        Engine.reached("start")
        return engine

    monkeypatch.setattr(Engine, "up", 0)
    monkeypatch.setattr(generating, "start_engine", start)
    monkeypatch.setattr(generating, "prepared", lambda stage, work, cache: Answers(stage, work))
    monkeypatch.setattr(generating, "already_whole", lambda job: False)
    monkeypatch.setattr(Weights, "max_model_len", lambda self, at_most: at_most)
    monkeypatch.setattr(asking_lane, "_ask", lambda stages, work, context: commit(work, stages))
    monkeypatch.setattr(training.check, "stages", lambda *_: None)
    return started


@pytest.mark.parametrize("seed", range(10))
def test_every_stage_ends_with_two_starts_a_base_and_only_the_students_at_fault_fail(
    seed: int, store: Store, starts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    r = random.Random(seed)
    stages = grid(r)
    tuned = [s for s in stages if s.kind == "checkpoint" and adapter_of(s)]
    dead = frozenset(name_of(s) for s in tuned if r.random() < 0.3)
    monkeypatch.setattr(Engine, "dead", dead)
    run = Run(stages, store, r)
    run.start()
    run.follow()
    failed = {(name_of(f.stage.inputs["checkpoint"]), f.why) for f in run.work.schedule.failures()}
    assert failed == {(name, f"adapter {name!r} is dead") for name in dead}
    assert max(starts.values()) <= 2
    assert Engine.up == 0


@pytest.mark.parametrize("seed", range(6))
def test_an_engine_that_starts_only_where_nothing_else_is_up_answers_for_all(
    seed: int, store: Store, starts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    r, start = random.Random(seed), generating.start_engine
    run = Run(grid(r), store, r)

    def start_alone(students: StudentSet, resources: object, begun: Callable[..., None]) -> object:
        up = [who for who, needs in run.work._up if needs != Needs()]
        if up != ["generating"]:
            starts[str(students.base_name)] += 1
            raise EngineFailed("too little memory is free")
        return start(students, resources=resources, begun=begun)

    monkeypatch.setattr(generating, "start_engine", start_alone)
    run.start()
    run.follow()
    assert run.work.schedule.failures() == []
    assert run.work.schedule.ended
    assert max(starts.values()) <= 2


@pytest.mark.parametrize("at", ["start", "start, in vain", "load", "generate"])
def test_a_run_that_is_ended_ends_its_lanes_and_calls_nothing_lost_or_failed(
    at: str, store: Store, starts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    r = random.Random(0)
    run = Run(grid(r), store, r)

    def reached(moment: str) -> None:
        if at.startswith(moment):
            run.work.stop()
        if at == "start, in vain" and moment == "start":
            raise EngineFailed("it was deleted")

    monkeypatch.setattr(Engine, "reached", staticmethod(reached))
    run.start()
    run.follow()
    assert not run.work.schedule.ended
    assert run.work.schedule.failures() == []
    assert not [line for line in run.lines if "warning" in line or "did not start" in line]
    assert Engine.up == 0


@pytest.mark.parametrize("seed", range(4))
def test_two_runs_on_one_store_make_everything_once(
    seed: int, store: Store, starts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    r = random.Random(seed)
    stages = grid(r)
    runs = [Run(stages, store, r) for _ in range(2)]
    monkeypatch.setattr(generating, "start_engine", lambda students, resources, begun: Engine(students))
    for run in runs:
        run.start()
    for run in runs:
        run.follow()
    assert all(run.work.schedule.ended and not run.work.schedule.failures() for run in runs)
    assert sum(run.work.made for run in runs) == len(stages)
