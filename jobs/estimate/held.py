"""Which of the requests that a stage would send the ledger has an answer to already."""

from __future__ import annotations

from collections.abc import Iterator

from empathy import judges, replies
from empathy.records import Dialogue
from empathy.requests import Answer, Asking
from empathy.specs import Recorded, RepliesSpec, Teacher, VerdictsSpec
from empathy.specs.sides import is_on
from empathy.stages import Stage
from jobs.estimate.view import View
from serving.ledger import Ledger

MOST_LOOKED_UP = 20_000
"""Rows; making up a request and its key takes some 50 microseconds."""


class Held:
    """`ledger` None: there is none yet, so nothing is held."""

    def __init__(self, ledger: Ledger | None):
        self._ledger = ledger if ledger is not None and len(ledger) else None
        self._left = MOST_LOOKED_UP

    def requests(self, stage: Stage, view: View) -> int | None:
        """How many are answered; None where that cannot be told without making what the stage stands on, or would take
        too long."""
        if self._ledger is None:
            return 0
        rows = view.rows(stage)
        if rows is None or rows > self._left:
            return None
        askings = self._askings(stage, view)
        if askings is None:
            return None
        self._left -= rows
        return sum(len(self._answers(asking)) for asking in askings)

    def _answers(self, asking: Asking[object]) -> list[Answer]:
        """The answers that the ledger gives, one after another, until it has none."""
        assert self._ledger is not None
        found: list[Answer] = []
        try:
            request = next(asking)
            while (answer := self._ledger.get(request.key)) is not None:
                found.append(answer)
                request = asking.send(answer)
        except StopIteration:  # it has its record
            pass
        return found

    def _askings(self, stage: Stage, view: View) -> Iterator[Asking[object]] | None:
        spec = stage.spec
        if isinstance(spec, VerdictsSpec):
            if not all(s.key in view.finished for s in stage.inputs.values()):
                return None
            parts = range(len(view.store.get(stage.inputs["dialogues"]).parts))
            return (asking for part in parts for _, asking in judges.askings(stage, view.store, part))
        return self._replies(stage, view)

    def _replies(self, stage: Stage, view: View) -> Iterator[Asking[object]] | None:
        """The teacher's requests about dialogues that need not be made yet."""
        spec, corpus = stage.spec, view.corpus(stage)
        assert isinstance(spec, RepliesSpec)
        assert isinstance(spec.responder, Teacher)
        if not corpus.whole:
            return None
        rewrites, teacher = "improves" in stage.inputs, spec.responder
        return (
            replies.ask(teacher, dialogue, said, sample)
            for dialogue in corpus.some
            if is_on(spec.split, dialogue.split)
            if (said := self._said(stage.inputs["improves"], dialogue) if rewrites else dialogue.human_reply)
            or not rewrites
            for sample in range(teacher.samples)
        )

    def _said(self, stage: Stage, dialogue: Dialogue) -> str | None:
        """The reply to improve, where it is with the data or in the ledger."""
        spec = stage.spec
        assert isinstance(spec, RepliesSpec)
        if isinstance(spec.responder, Recorded):
            return dialogue.reply_of(spec.responder.responder)
        if not isinstance(spec.responder, Teacher):
            return None
        answers = self._answers(replies.ask(spec.responder, dialogue, dialogue.human_reply))
        return replies.tidy(answers[-1].text) if len(answers) == len(spec.responder.turns) else None
