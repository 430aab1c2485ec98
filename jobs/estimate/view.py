"""What is known of an experiment's inputs: dialogues, lengths of replies, numbers of examples. Looked up once each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from empathy.doors import recorded
from empathy.records import HUMAN
from empathy.specs import ExamplesSpec, ImproveLlm, Pooled, Recorded, RepliesSpec, Student, Teacher, VerdictsSpec
from empathy.stages import Stage
from empathy.store import Store
from jobs.estimate import REPLY_WORDS, TOKENS_PER_WORD, tokens
from jobs.estimate.corpus import Corpus, look, mean
from jobs.estimate.measured import answer_tokens, asked

if TYPE_CHECKING:  # slow to load
    import polars as pl


class View:
    """`stages` are all of the graph, `finished` the keys of those that the store has."""

    def __init__(self, stages: Iterable[Stage], finished: set[str], store: Store):
        self.store, self.finished = store, finished
        self._corpora: dict[str, Corpus] = {}
        self._examples: dict[str, int | None] = {}
        self._chose: dict[tuple[Any, ...], int] = {}
        self._tables: dict[str, pl.DataFrame] = {}
        self._measured = answer_tokens(store, (stage for stage in stages if stage.key in finished))

    def corpus(self, stage: Stage) -> Corpus:
        """The dialogues that a stage is about (or is)."""
        dialogues = stage if stage.kind == "dialogues" else stage.inputs["dialogues"]
        if dialogues.key not in self._corpora:
            self._corpora[dialogues.key] = look(dialogues, self.store)
        return self._corpora[dialogues.key]

    # ---- lengths

    def answer_tokens(self, stage: Stage, assumed: float, limit: int) -> float:
        """What one answer of whom the stage asks costs: measured in this store, else `assumed`; never over `limit`."""
        who = asked(stage.identity["spec"])
        return min(self._measured.get(who, assumed) if who else assumed, limit)

    def reply_tokens(self, replies: Stage | None, corpus: Corpus, at_most: bool = False) -> float:
        """Mean tokens of the replies of a stage; of the human's without one. `at_most`: a teacher's at its limit."""
        spec = replies.spec if replies else RepliesSpec(responder=Recorded(responder=HUMAN))
        assert isinstance(spec, RepliesSpec)
        if isinstance(spec.responder, Recorded):
            return tokens(corpus.reply_chars(spec.responder.responder))
        assert replies is not None, "the human's are recorded"
        if isinstance(spec.responder, Pooled):
            return mean(self.reply_tokens(replies.inputs[name], corpus, at_most) for name in _pooled(replies))
        assert isinstance(spec.responder, Teacher | Student)
        if at_most and isinstance(spec.responder, Teacher):
            return float(spec.responder.max_tokens)
        return self.answer_tokens(replies, REPLY_WORDS * TOKENS_PER_WORD, spec.responder.max_tokens)

    # ---- numbers

    def rows(self, stage: Stage) -> int | None:
        """Rows that the stage has or will have, at most; None while unknown."""
        if stage.kind == "examples":
            return self.examples(stage)
        if stage.kind == "logprobs":
            return self.examples(stage.inputs["examples"])
        if stage.kind in ("checkpoint", "report"):
            return 0
        corpus, spec = self.corpus(stage), stage.spec
        if isinstance(spec, VerdictsSpec):
            n = corpus.count(spec.split)
            return None if n is None else n * spec.judge.calls
        if isinstance(spec, RepliesSpec):
            n = corpus.count(spec.split)
            return None if n is None else n * samples(stage)
        return corpus.count()

    def examples(self, stage: Stage) -> int | None:
        """Examples of a set, at most (screens may drop some): counted as its method selects, where all dialogues are
        known. Raises ValueError where the method needs ratings that the data does not have."""
        if stage.key not in self._examples:
            if stage.key in self.finished:
                self._examples[stage.key] = self.store.get(stage).rows
            else:
                self._examples[stage.key] = self._selected(stage)
        return self._examples[stage.key]

    def _selected(self, stage: Stage) -> int | None:
        spec, corpus = stage.spec, self.corpus(stage)
        assert isinstance(spec, ExamplesSpec)
        learned, initial = (stage.inputs.get(name) for name in ("replies", "initial"))
        many = samples(learned) if learned else 1
        taught = spec.method.teaches(spec.purpose) if spec.objective == "sft" else [("learned", "")]
        each = sum(many if who == "learned" else 1 for who, _ in taught)  # equal examples are one
        n = corpus.count(spec.split)
        if n is None or not corpus.whole or spec.good is not None:  # a judge's score decides: at most all of them
            return None if n is None else n * each
        if isinstance(spec.method, ImproveLlm) and spec.method.division == "random":
            for_sft = round(spec.method.sft_share * n)
            whole = spec.purpose == "heldout"
            return each * (n if whole else for_sft if spec.objective == "sft" else n - for_sft)
        return each * self._chosen(stage, recorded(learned), recorded(initial))

    def _chosen(self, stage: Stage, learned: str | None, initial: str | None) -> int:
        """Dialogues that the method selects. Whose replies were recorded decides, and not what is still to be asked
        for: all strategies of a method are counted once."""
        spec = stage.spec
        assert isinstance(spec, ExamplesSpec)
        alike = (stage.inputs["dialogues"].key, spec.method, spec.objective, spec.purpose, spec.split, learned, initial)
        if alike not in self._chose:
            from empathy.candidates import Choice
            from empathy.cases import answers

            dialogues = self._table(stage).filter(split=spec.split)
            said = (None if who is None else answers(dialogues, who) for who in (learned, initial))
            self._chose[alike] = Choice(spec).count(dialogues, *said)
        return self._chose[alike]

    def _table(self, stage: Stage) -> pl.DataFrame:
        """The dialogues that a stage is about, for a selection to look at."""
        from empathy.cases import table

        key = stage.inputs["dialogues"].key
        if key not in self._tables:
            self._tables[key] = table(self.corpus(stage).some)
        return self._tables[key]


def samples(replies: Stage) -> int:
    """Replies a dialogue."""
    spec = replies.spec
    assert isinstance(spec, RepliesSpec)
    if isinstance(spec.responder, Pooled):
        return sum(samples(replies.inputs[name]) for name in _pooled(replies))
    return spec.responder.samples if isinstance(spec.responder, Teacher) else 1


def _pooled(replies: Stage) -> list[str]:
    return [name for name in replies.inputs if name.startswith("of:")]


def asked_model(stage: Stage) -> tuple[str, str] | None:
    """(provider, model) that making the stage asks; None when it asks nobody."""
    spec = stage.spec
    if isinstance(spec, VerdictsSpec):
        return spec.judge.provider, spec.judge.model
    if isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher):
        return spec.responder.provider, spec.responder.model
    return None


def by_student(stage: Stage) -> bool:
    """Whether a checkpoint answers."""
    return isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Student)
