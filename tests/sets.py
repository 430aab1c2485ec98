"""All that an experiment makes before training, with the embedded rules called in this process: no HTTP, no Ray."""

from __future__ import annotations

from typing import Any

from cluster.steps import here
from empathy import judges, replies
from empathy.lower import Lowered
from empathy.records import Reply, Score
from empathy.requests import Answer, Asking
from empathy.specs import RepliesSpec, Rubric, Teacher, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from serving.rules import judge, teacher


def answered(asking: Asking[Any], answer: Any) -> Any:
    try:
        request = next(asking)
        while True:
            request = asking.send(Answer(answer(request.messages)))
    except StopIteration as end:
        return end.value


def ask(stage: Stage, store: Store) -> None:
    """Make a stage of teacher replies or scores without HTTP."""
    writer, scoring = store.writer(stage), isinstance(stage.spec, VerdictsSpec)
    builder, cls, who = (judges.askings, Score, judge.reply) if scoring else (replies.askings, Reply, teacher.reply)
    for part in range(len(store.get(stage.inputs["dialogues"]).parts)):
        writer.write_records(part, [answered(a, who) for _, a in builder(stage, store, part)], cls)
    writer.commit()


def made(lowered: Lowered, store: Store) -> None:
    """Everything up to the training sets."""
    for stage in walk([lowered.report]):
        spec = stage.spec
        asked = isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher)
        if asked or (isinstance(spec, VerdictsSpec) and isinstance(spec.judge, Rubric)):
            ask(stage, store)
        elif stage.kind != "report" and here.takes(stage):
            here.make(stage, store)
