"""Students answer: one engine a base, up once for all of its students.

An engine comes up when no more of its students can come (their checkpoints are made, or have failed), when this run
could do nothing else, or when it takes room from nobody: beside a training that goes on, it answers for the students
that are there, and for the others as they come. One that does not start is tried once more, with all the room to
itself. Students are taken apart where one is at fault: the others answer.

What is judged is what is served: the engine, the template and the rendering are the endpoint's own (`serving`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.profile import Engine, Profile
from cluster.progress import named
from cluster.schedule import OPEN, Place, Schedule, State
from cluster.steps.student_jobs import Job, already_whole, prepared, student_of
from cluster.weights import DTYPES, Weights
from cluster.work import Needs, StoppedError, Work
from empathy.specs import Lora
from empathy.stages import Stage
from empathy.words import counted
from serving.app import EngineLost, Resources, Students, StudentSet, start_engine

if TYPE_CHECKING:
    from cluster.executors import Context

AT_ONCE = 1024
"""Students of one engine."""
ALL_ROOM = Needs(math.inf, math.inf)
"""Who needs this is let in alone, and lets nobody in."""
ENGINE_GONE = (
    "the engine's process is gone: killed, crashed, or its machine was lost; another one starts, and what was not "
    "answered is asked again"
)


def student_set(weights: Sequence[Weights], engine: Engine, precision: str, names: Sequence[str]) -> StudentSet:
    """The students of one base as an engine takes them. `names`: what each answers to."""
    base = weights[0]
    return StudentSet(
        base=str(base.base),
        base_name=next((n for n, w in zip(names, weights, strict=True) if w.adapter is None), None),
        adapters={n: str(w.adapter) for n, w in zip(names, weights, strict=True) if w.adapter is not None},
        chat_template=base.template,
        dtype=DTYPES[precision],
        max_model_len=base.max_model_len(engine.max_model_len),
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib,
    )


def resources(engine: Engine) -> Resources:
    """What the profile sets aside for the engine."""
    return Resources(replicas=engine.replicas, num_gpus=engine.gpus)


# ---------------------------------------------------------------- the lane


def loop(places: Sequence[Place], work: Work, context: Context) -> None:
    """Make student `replies`, one engine after another, until none can come any more."""
    replicas, gpus = context.profile.engine.replicas, context.profile.engine.gpus
    needs = Needs(replicas, replicas * gpus)
    may_be_early, refused = set(places), set[Place]()
    while place := _next_engine(places, work, needs, may_be_early):
        with work.room("generating", ALL_ROOM if place in refused else needs):
            engine = _Engine(place, work, context.profile, is_last_try=place in refused)
            _serve(engine, place, [p for p in places if p != place], work)
        if engine.was_tried:  # it had to go, or did not start: it waits for the rest of its students
            may_be_early.discard(place)
        if engine.is_put_off:
            refused.add(place)


def _next_engine(places: Sequence[Place], work: Work, needs: Needs, may_be_early: set[Place]) -> Place | None:
    """The base whose engine is to be started now. Waits for it; None when no student is left."""

    def due() -> Place | None:
        return _due(places, work.schedule) or _early(sorted(may_be_early, key=str), work, needs)

    while not work.stopping and work.may_come(places):
        if (place := due()) is not None:
            return place
        work.wait(lambda: due() is not None or not work.may_come(places))
    return None


def _due(places: Sequence[Place], schedule: Schedule) -> Place | None:
    """A base with students that are ready, of whom no more can come; when nothing else can run here, any base."""
    whole = schedule.best(place for place in places if not schedule.count([State.WAITING], place))
    if whole is not None:
        return whole
    active = (State.READY, State.RUNNING)
    elsewhere = schedule.count(active) - sum(schedule.count(active, place) for place in places)
    return None if elsewhere else schedule.best(places)


def _early(places: Sequence[Place], work: Work, needs: Needs) -> Place | None:
    """A base with a student that is ready, where an engine fits beside the training that is up: it would not be in its
    way, nor in that of anybody who waits for room."""
    ready = work.schedule.best(places)
    return ready if ready is not None and work.has_room_beside("training", needs) else None


# ---------------------------------------------------------------- one engine


def _serve(engine: _Engine, place: Place, others: Sequence[Place], work: Work) -> None:
    """Answer for what is ready at `place`, and for what becomes ready while nobody needs the room and none of the
    `others` is due."""

    def may_stay() -> bool:
        coming = work.schedule.count((State.WAITING, State.READY), place)
        return coming > 0 and not work.crowded and _due(others, work.schedule) is None

    with engine:
        batch = work.take(place, AT_ONCE)
        while batch:
            work.make(batch, engine.make)
            batch = [] if engine.is_over else work.next([place], engine.room, unless=lambda: not may_stay())


class _Engine:
    """One base's, started for the first students that need it. A context manager: it ends with the block.

    `is_last_try`: where it does not start, its students fail; else they wait for the next.
    """

    def __init__(self, place: Place, work: Work, profile: Profile, is_last_try: bool):
        self._place, self._work, self._profile, self._is_last_try = place, work, profile, is_last_try
        self.was_tried = False
        """Whether it came up, or was to."""
        self._stack = ExitStack()
        self._students: Students | None = None
        self._refused: Exception | None = None
        self._adapters: dict[str, str] = {}
        """Name -> LoRA folder of the students that it has loaded."""
        self._changes: dict[str, float] = {}

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def room(self) -> int:
        """How many students more it can take."""
        return AT_ONCE - len(self._adapters)

    @property
    def is_over(self) -> bool:
        """Whether it is full, or put off."""
        return not self.room or self.is_put_off

    @property
    def is_put_off(self) -> bool:
        """Whether it did not start and is to be tried again."""
        return self._refused is not None and not self._is_last_try

    def make(self, stages: Sequence[Stage]) -> None:
        """Make student `replies`; each is committed when its last part is written.

        A student that is at fault (its weights cannot be had, its adapter or its rendering proves wrong) fails alone.
        No engine is started when all parts are there and only the commit is missing.
        """
        cache = Path(self._profile.cache).expanduser()
        jobs = [job for stage in stages if (job := prepared(stage, self._work, cache)) is not None]
        jobs = [job for job in jobs if not already_whole(job)]
        if jobs and self._students is None and self._refused is None:
            self._start(jobs)
        if self._refused is not None:  # it cannot start here: not for one of them alone either
            for job in jobs:
                if self.is_put_off:
                    self._work.back(job.stage)
                else:
                    self._work.failed(job.stage, self._refused)
        elif jobs and self._students is not None:
            try:
                self._answer(self._loaded(jobs, self._students), self._students)
            except EngineLost:  # one after another of its processes died: whoever is tried next has a new one
                self._stack.close()
                self._students, self._adapters, self._changes = None, {}, {}
                raise

    def _start(self, jobs: Sequence[Job]) -> None:
        stages, weights = self._work.schedule.at(self._place, OPEN), jobs[0].weights
        ranks = [lora.rank for stage in stages if (lora := _adapter_of(stage))]
        base = Weights(weights.base_key[:16], weights.base_key, weights.base, weights.template)
        self._work.progress.say(
            f"generating: an engine (vLLM) for {counted(len(stages), 'student')} coming up (a minute or more); "
            f"first is {named(jobs[0].stage)}"
        )
        students = student_set([base], self._profile.engine, student_of(jobs[0].stage).precision, [base.name])
        students = replace(students, later=min(AT_ONCE, len(ranks)), later_rank=max(ranks, default=0))
        self.was_tried = True
        try:
            self._students = start_engine(students, resources=resources(self._profile.engine), begun=self._may_end)
        except ValueError as error:
            self._refused, self._is_last_try = error, True  # it would be refused again
            return
        except RuntimeError as error:
            if self._work.stopping:  # that is why
                raise StoppedError from error
            self._refused = ValueError(str(error))
            if not self._is_last_try:
                self._tell_later()
            return
        self._stack.enter_context(self._students)

    def _may_end(self, students: Students) -> None:
        self._stack.enter_context(self._work.cancelled_by("generating", students.stop))

    def _loaded(self, jobs: Sequence[Job], students: Students) -> list[Job]:
        """The jobs of students that the engine takes; the others have failed."""
        new = {
            job.student: str(job.weights.adapter)
            for job in jobs
            if job.weights.adapter is not None and job.student not in self._adapters
        }
        said = students.load(new, self._lost) if new else {}
        self._changes |= {name: change for name, change in said.items() if not isinstance(change, str)}
        self._adapters |= {name: new[name] for name in self._changes if name in new}
        for job in jobs:
            if isinstance(reason := said.get(job.student), str):
                self._work.failed(job.stage, reason)
        return [job for job in jobs if not isinstance(said.get(job.student), str)]

    def _answer(self, jobs: Sequence[Job], students: Students) -> None:
        """All jobs at once: requests of many students in flight together."""
        by_key = {job.stage.key: job for job in jobs}
        for job in jobs:
            job.proved(self._changes.get(job.student))
            job.tell()
        requests = (request for job in jobs for request in job.requests())
        for answer in students.generate(requests, adapters=self._adapters, on_loss=self._lost):
            key, k, dialogue_id = answer.id.split("/", 2)
            by_key[key].take(int(k), dialogue_id, answer)

    def _tell_later(self) -> None:
        self._work.progress.say(
            f"generating: the engine did not start ({self._refused}); it is tried once more when the last of its "
            "students is trained, and nothing else is up"
        )

    def _lost(self) -> None:
        if self._work.stopping:  # we have ended it: nobody is to ask the next
            raise StoppedError
        self._work.progress.lost("generating", ENGINE_GONE)


def _adapter_of(stage: Stage) -> Lora | None:
    from empathy.train.bench import adapter_of

    return adapter_of(stage.inputs["checkpoint"])
