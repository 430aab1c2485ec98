"""A student's `replies` in work: requests out, replies in, parts written as they fill, the commit after the last."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.weights import Weights, fetch
from cluster.work import Work
from empathy.columns import from_table
from empathy.records import Demonstration, Dialogue, Preference, Reply, Turn, content_id
from empathy.specs import ExamplesSpec, RepliesSpec, Student
from empathy.specs.sides import is_on, rows_on
from empathy.stages import Stage
from empathy.store import Store, Writer
from empathy.train.tokens import ids_sha256
from serving.adapters import read_adapter
from serving.app import Completion, StudentRequest, Unanswered
from serving.students import renderer

Render = Callable[[Sequence[Mapping[str, str]]], list[int]]


def student_of(stage: Stage) -> Student:
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, Student)
    return stage.spec.responder


def prepared(stage: Stage, work: Work, cache: Path) -> Job | None:
    """The stage with its weights on this machine and proved as far as that needs no engine; None when it failed."""
    store = work.store
    try:
        weights = fetch(stage.inputs["checkpoint"], store, cache)
        if weights.adapter is not None:
            read_adapter(weights.name, weights.adapter, weights.base)
        render = renderer(weights.base, weights.template)
        prove_rendering(stage.inputs["checkpoint"], store, render)
    except (ValueError, OSError) as error:  # of this student alone: the others answer
        work.failed(stage, error)
        return None
    return Job(stage, weights, work, render)


def already_whole(job: Job) -> bool:
    """Whether an earlier run wrote every part; then it is committed."""
    if job.is_whole():
        job.commit()
    return job.is_whole()


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


class Job:
    """One stage."""

    def __init__(self, stage: Stage, weights: Weights, work: Work, render: Render):
        self.stage, self.weights, self._work, self._render = stage, weights, work, render
        self.writer: Writer = work.store.writer(stage, work.epoch(stage))
        self.dialogues = work.store.get(stage.inputs["dialogues"])
        self.spec = student_of(stage)
        self.parts: dict[int, _Part] = {}
        self._finished = self.writer.finished_indices()
        split = stage.spec.split if isinstance(stage.spec, RepliesSpec) else None
        of_part = [rows_on(split, part.rows or 0, part.counts) for part in self.dialogues.parts]
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
            part = self.parts[k] = _Part([d for d in dialogues if is_on(self.stage.spec.split, d.split)])
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

    def proved(self, change: float | None) -> None:
        """Keep what the engine proved of this student, before it answers: a run that only commits has no engine.

        `change`: how much its adapter changes log-probabilities; None for weights of its own.
        """
        proofs = {} if change is None else _proofs(change)
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
