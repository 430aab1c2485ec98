"""Students answer: one engine a base, up once for all of its students that the batch asks for.

What is judged is what is served: the engine, the template and the rendering are the endpoint's own (`serving`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.profile import Engine
from cluster.weights import Weights, fetch
from empathy.columns import from_table
from empathy.records import Demonstration, Dialogue, Preference, Reply, Turn, content_id
from empathy.specs import ExamplesSpec, RepliesSpec, Student
from empathy.stages import Stage
from empathy.store import Store, Writer
from empathy.train.tokens import ids_sha256
from serving.app import Completion, Resources, StudentRequest, Students, StudentSet, Unanswered, start_engine
from serving.students import renderer

Render = Callable[[Sequence[Mapping[str, str]]], list[int]]
Units = Callable[[Stage, int, int], None]
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


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
        base_name=next((n for n, w in zip(named, weights, strict=True) if w.adapter is None), "base"),
        adapters={n: str(w.adapter) for n, w in zip(named, weights, strict=True) if w.adapter is not None},
        chat_template=base.template,
        dtype=DTYPES[precision],  # type: ignore[arg-type]
        max_model_len=base.max_model_len(engine.max_model_len),
        max_num_seqs=engine.max_num_seqs,
        kv_cache_gib=engine.kv_cache_gib,
    )


def resources(engine: Engine) -> Resources:
    """What the profile sets aside for the engine."""
    return Resources(replicas=engine.replicas, num_gpus=engine.gpus)


def generate(stages: Sequence[Stage], store: Store, engine: Engine, cache: Path, units: Units) -> None:
    """Make student `replies` stages, one engine after another; each is committed when its last part is written."""
    groups: dict[tuple[str, str], list[tuple[Stage, Weights]]] = defaultdict(list)
    for stage in stages:
        weights = fetch(stage.inputs["checkpoint"], store, cache)
        groups[weights.base_key, _student(stage).precision].append((stage, weights))
    for (_, precision), group in groups.items():
        distinct = {w.name: w for _, w in group}
        with start_engine(
            student_set(list(distinct.values()), engine, precision), resources=resources(engine)
        ) as students:
            render = renderer(group[0][1].base, group[0][1].template)
            for stage, _ in group:
                prove_rendering(stage.inputs["checkpoint"], store, render)
            jobs = [_Job(stage, weights.name, store, render, units) for stage, weights in group]
            _answer_all(jobs, students)


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
    records = store.get(checkpoint.inputs["examples"]).read(Demonstration if spec.objective == "sft" else Preference)
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
    """One stage: requests out, replies in, parts written as they fill."""

    def __init__(self, stage: Stage, student: str, store: Store, render: Render, units: Units):
        self.stage, self.student, self._store, self._render, self._units = stage, student, store, render, units
        self.writer: Writer = store.writer(stage)
        self.dialogues = store.get(stage.inputs["dialogues"])
        self.spec = _student(stage)
        self.parts: dict[int, _Part] = {}
        self._finished = self.writer.finished_indices()

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
        self._write_if_full(k)

    def _write_if_full(self, k: int) -> None:
        part = self.parts.get(k)
        if part is None or len(part.replies) < len(part.asked):
            return
        records = [part.replies[d.id] for d in part.asked]
        counts = {"rows": len(records), "refused": sum(r.dropped is not None for r in records)}
        self.writer.write_records(k, records, Reply, {n: v for n, v in counts.items() if v})
        del self.parts[k]
        self._finished.add(k)
        self._units(self.stage, len(self._finished), len(self.dialogues.parts))

    def commit(self, alive: Mapping[str, float]) -> None:
        self.writer.commit({"proofs": _proofs(alive[self.student]) if self.student in alive else {}})


def _proofs(change: float) -> dict[str, str]:
    """`change` is the largest change of a log-probability against the base on fixed prompts; infinite where the
    tokens part."""
    parted = math.isinf(change)
    return {
        "adapter alive": "its greedy tokens differ from its base's"
        if parted
        else f"it changes log-probabilities by {change:.3g}"
    }


def _answer_all(jobs: Sequence[_Job], students: Students) -> None:
    """All jobs through one engine at once: requests of many students in flight together."""
    by_key = {job.stage.key: job for job in jobs}
    requests = (request for job in jobs for request in job.requests())
    for answer in students.generate(requests):
        key, k, dialogue_id = answer.id.split("/", 2)
        by_key[key].take(int(k), dialogue_id, answer)
    for job in jobs:
        job.commit(students.ready["alive"])
