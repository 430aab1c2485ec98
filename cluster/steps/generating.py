"""Students answer: one engine a base, up once for all of its students.

An engine is started when no checkpoint that it would serve can still come (all are made, or have failed), or when this
run could do nothing else: so a base is loaded once. Students are taken apart where one is at fault: the others answer.

What is judged is what is served: the engine, the template and the rendering are the endpoint's own (`serving`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.profile import Engine, Profile
from cluster.progress import named
from cluster.schedule import Place, Schedule, State
from cluster.weights import DTYPES, Weights, fetch
from cluster.work import Needs, Work
from empathy.columns import from_table
from empathy.records import Demonstration, Dialogue, Preference, Reply, Turn, content_id
from empathy.specs import ExamplesSpec, RepliesSpec, Student
from empathy.stages import Stage
from empathy.store import Store, Writer
from empathy.train.tokens import ids_sha256
from empathy.words import counted
from serving.adapters import read_adapter
from serving.app import Completion, Resources, StudentRequest, Students, StudentSet, Unanswered, start_engine
from serving.students import renderer

if TYPE_CHECKING:
    from cluster.executors import Context

Render = Callable[[Sequence[Mapping[str, str]]], list[int]]
AT_ONCE = 1024
"""Students of one engine."""
ENGINE_GONE = (
    "the engine's process is gone: killed, crashed, or its machine was lost; another one starts, and what was not "
    "answered is asked again"
)


def _student(stage: Stage) -> Student:
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, Student)
    return stage.spec.responder


def student_set(
    weights: Sequence[Weights], engine: Engine, precision: str, names: Sequence[str] | None = None
) -> StudentSet:
    """The students of one base as an engine takes them. `names`: their model names (default: their folders' keys)."""
    base = weights[0]
    named = list(names or [w.name for w in weights])
    return StudentSet(
        base=str(base.base),
        base_name=next((n for n, w in zip(named, weights, strict=True) if w.adapter is None), None),
        adapters={n: str(w.adapter) for n, w in zip(named, weights, strict=True) if w.adapter is not None},
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
    engine = context.profile.engine
    needs = Needs(engine.replicas, engine.replicas * engine.gpus)
    while place := _next_engine(places, work):
        with work.room("generating", needs):
            if batch := work.take(place, AT_ONCE):
                context.progress.say(
                    f"generating: an engine (vLLM) for {counted(len(batch), 'student')} coming up (a minute or more); "
                    f"first is {named(batch[0])}"
                )
                work.make(batch, lambda stages: generate(stages, work, context.profile))


def _next_engine(places: Sequence[Place], work: Work) -> Place | None:
    """The base whose engine is to be started now. Waits for it; None when no student is left."""
    work.wait(lambda: _due(places, work.schedule) is not None or not work.may_come(places))
    return None if work.stopping else _due(places, work.schedule)


def _due(places: Sequence[Place], schedule: Schedule) -> Place | None:
    """A base with students that are ready, of whom no more can come; when nothing else can run here, any base."""
    whole = schedule.best(place for place in places if not schedule.count([State.WAITING], place))
    if whole is not None:
        return whole
    active = (State.READY, State.RUNNING)
    elsewhere = schedule.count(active) - sum(schedule.count(active, place) for place in places)
    return None if elsewhere else schedule.best(places)


# ---------------------------------------------------------------- one engine


def generate(stages: Sequence[Stage], work: Work, profile: Profile) -> None:
    """Make student `replies` of one base in one precision; each is committed when its last part is written.

    A student that is at fault (its weights cannot be had, its adapter or its rendering proves wrong) fails alone. No
    engine is started when all parts are there and only the commit is missing.
    """
    jobs = [job for stage in stages if (job := _prepared(stage, work, profile)) is not None]
    jobs = [job for job in jobs if not _already_whole(job)]
    while jobs:
        students = student_set(
            list({j.weights.name: j.weights for j in jobs}.values()), profile.engine, jobs[0].precision
        )
        try:
            engine = start_engine(students, resources=resources(profile.engine))
        except ValueError as error:
            jobs = _without_culprit(jobs, error, work)
            continue
        except RuntimeError as error:  # it cannot start here: not for one of them alone either
            for job in jobs:
                work.failed(job.stage, str(error))
            return
        with engine, work.cancelled_by("generating", engine.stop):
            _answer_all(jobs, engine, lambda: work.progress.lost("generating", ENGINE_GONE))
        return


def _prepared(stage: Stage, work: Work, profile: Profile) -> _Job | None:
    """The stage with its weights on this machine and proved as far as that needs no engine; None when it failed."""
    store = work.store
    try:
        weights = fetch(stage.inputs["checkpoint"], store, Path(profile.cache).expanduser())
        if weights.adapter is not None:
            read_adapter(weights.name, weights.adapter, weights.base)
        render = renderer(weights.base, weights.template)
        prove_rendering(stage.inputs["checkpoint"], store, render)
    except (ValueError, OSError) as error:  # of this student alone: the others answer
        work.failed(stage, error)
        return None
    return _Job(stage, weights, work, render)


def _already_whole(job: _Job) -> bool:
    """Whether an earlier run wrote every part; then it is committed."""
    if job.is_whole():
        job.commit()
    return job.is_whole()


def _without_culprit(jobs: list[_Job], error: ValueError, work: Work) -> list[_Job]:
    """The jobs of students whom the engine's refusal does not name; none when it names nobody."""
    guilty = [job for job in jobs if job.weights.name in str(error)] or jobs
    for job in guilty:
        work.failed(job.stage, error)
    return [job for job in jobs if job not in guilty]


def prove_rendering(checkpoint: Stage, store: Store, render: Render) -> None:
    """Serving renders the prompts that training rendered to the same token ids. Raises ValueError where it does not.

    Compares sha256 over the ids of the first training examples, which training left in the checkpoint's meta.
    """
    proof = store.get(checkpoint).meta.get("token_proof")
    if proof is None:  # a model that was found, not trained here
        return
    spec = checkpoint.inputs["examples"].spec
    assert isinstance(spec, ExamplesSpec)
    wanted = proof["example_ids"]
    record: Any = Demonstration if spec.objective == "sft" else Preference
    records = store.get(checkpoint.inputs["examples"]).read(record)
    by_id: dict[str, list[int]] = {}
    for example in records:
        if example.id in wanted:
            by_id[example.id] = render([t.as_message() for t in example.messages])
        if len(by_id) == len(set(wanted)):
            break
    if ids_sha256([by_id[i] for i in wanted]) != proof["prompt_sha256"]:
        raise ValueError(
            f"template of {checkpoint!r}: the server renders training prompts to other token ids than training did; "
            "serve with the tokenizer and template.jinja that the checkpoint carries"
        )


@dataclass
class _Part:
    """A part in work: the dialogues asked, and the replies that have come."""

    asked: list[Dialogue]
    replies: dict[str, Reply] = field(default_factory=dict)


class _Job:
    """One stage: requests out, replies in, parts written as they fill, and the commit after the last."""

    def __init__(self, stage: Stage, weights: Weights, work: Work, render: Render):
        self.stage, self.weights, self._work, self._render = stage, weights, work, render
        self.writer: Writer = work.store.writer(stage, work.epoch(stage))
        self.dialogues = work.store.get(stage.inputs["dialogues"])
        self.spec = _student(stage)
        self.parts: dict[int, _Part] = {}
        self._finished = self.writer.finished_indices()
        split = stage.spec.split if isinstance(stage.spec, RepliesSpec) else None
        of_part = [part.counts.get(split, 0) if split else part.rows or 0 for part in self.dialogues.parts]
        self._dialogues, self._answered = sum(of_part), sum(of_part[k] for k in self._finished)

    @property
    def student(self) -> str:
        return self.weights.name

    @property
    def precision(self) -> str:
        return self.spec.precision

    def is_whole(self) -> bool:
        """Whether every part is written."""
        return len(self._finished) == len(self.dialogues.parts)

    def requests(self) -> Iterator[StudentRequest]:
        """Every request that no finished part answers; reads one part at a time."""
        assert isinstance(self.stage.spec, RepliesSpec)
        for k in range(len(self.dialogues.parts)):
            if k in self._finished:
                continue
            dialogues = from_table(self.dialogues.table(k), Dialogue)
            part = self.parts[k] = _Part([d for d in dialogues if self.stage.spec.split in (None, d.split)])
            for dialogue in part.asked:
                yield self._request(k, dialogue)
            self._write_if_full(k)

    def _request(self, k: int, dialogue: Dialogue) -> StudentRequest:
        system = (Turn("system", self.spec.system),) if self.spec.system else ()
        prompt = self._render([t.as_message() for t in (*system, *dialogue.turns)])
        seed = int(content_id(self.spec.seed, dialogue.id)[:8], 16) if self.spec.temperature else None
        ident = f"{self.stage.key}/{k}/{dialogue.id}"
        return StudentRequest(ident, self.student, prompt, self.spec.max_tokens, self.spec.temperature, seed=seed)

    def take(self, k: int, dialogue_id: str, answer: Completion | Unanswered) -> None:
        if isinstance(answer, Unanswered):
            reply = Reply(dialogue_id, self.student, "", finish_reason="error", dropped=f"refused: {answer.reason}")
        else:
            reply = Reply(
                dialogue_id,
                self.student,
                answer.text,
                finish_reason=answer.finish_reason,
                model_served=self.student,
                tokens_in=answer.prompt_tokens,
                tokens_out=answer.completion_tokens,
                token_ids=tuple(answer.token_ids),
            )
        self.parts[k].replies[dialogue_id] = reply
        self._answered += 1
        self.tell()
        self._write_if_full(k)

    def tell(self) -> None:
        """How many dialogues are answered."""
        self._work.progress.units(self.stage, self._answered, self._dialogues)

    def _write_if_full(self, k: int) -> None:
        part = self.parts.get(k)
        if part is None or len(part.replies) < len(part.asked):
            return
        records = [part.replies[d.id] for d in part.asked]
        counts = {"rows": len(records), "refused": sum(r.dropped is not None for r in records)}
        self.writer.write_records(k, records, Reply, {n: v for n, v in counts.items() if v})
        del self.parts[k]
        self._finished.add(k)
        if self.is_whole():
            self.commit()

    def proved(self, alive: Mapping[str, float]) -> None:
        """Keep what the engine proved of this student, before it answers: a run that only commits has no engine."""
        proofs = _proofs(alive[self.student]) if self.student in alive else {}
        self._work.store.files.write(self._proofs_path, json.dumps(proofs).encode())

    @property
    def _proofs_path(self) -> str:
        return f"{self.writer.folder}/proofs.json"

    def commit(self) -> None:
        proofs = self._work.store.files.read_or_none(self._proofs_path)
        try:
            self.writer.commit({"proofs": json.loads(proofs) if proofs else {}})
        except FileExistsError:  # another run was first: it had the same parts
            assert self._work.store.done(self.stage)
        self._work.done(self.stage)


def _proofs(change: float) -> dict[str, str]:
    """`change` is the largest change of a log-probability against the base on fixed prompts; infinite where the
    tokens part."""
    parted = math.isinf(change)
    return {
        "adapter alive": "its greedy tokens differ from its base's"
        if parted
        else f"it changes log-probabilities by {change:.3g}"
    }


def _answer_all(jobs: Sequence[_Job], students: Students, on_loss: Callable[[], None]) -> None:
    """All jobs through one engine at once: requests of many students in flight together."""
    by_key = {job.stage.key: job for job in jobs}
    for job in jobs:
        job.proved(students.ready["alive"])
        job.tell()
    requests = (request for job in jobs for request in job.requests())
    for answer in students.generate(requests, on_loss=on_loss):
        key, k, dialogue_id = answer.id.split("/", 2)
        by_key[key].take(int(k), dialogue_id, answer)
