"""What there is to learn: the replies of people and teachers, and the sets of examples made of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from empathy import prompts
from empathy.experiment import Experiment, Method
from empathy.lower.cells import Lesson
from empathy.lower.judging import scores
from empathy.specs import (
    Direct,
    ExamplesSpec,
    Human,
    ImproveHuman,
    ImproveLlm,
    MethodSpec,
    Pooled,
    Recorded,
    RepliesSpec,
    Teacher,
)
from empathy.stages import Stage


class Lessons:
    """The lessons of an experiment on `dialogues`."""

    def __init__(self, x: Experiment, dialogues: Stage):
        self.x, self.dialogues = x, dialogues

    # ---- replies

    def recorded(self, responder: str) -> Stage:
        """What was stored with the data, "human" included."""
        return self._replies(RepliesSpec(responder=Recorded(responder=responder)), f"{responder} (recorded)")

    def asked(self, strategy: str, wording: int = 0, improves: Stage | None = None) -> Stage:
        """What the [teacher] model says to a prompt, rewriting `improves` if the prompt does. A union's replies are
        those of its strategies, pooled."""
        t = self.x.teacher
        assert t is not None, "checked when the file was read"
        parts = prompts.parts(strategy, t.prompts)
        if parts != (strategy,):
            pooled = {f"of:{k}": self.asked(part, wording, improves) for k, part in enumerate(parts)}
            return self._replies(RepliesSpec(responder=Pooled()), f"{t.model} {strategy}", **pooled)
        responder = Teacher(
            provider=t.provider,
            model=t.model,
            turns=prompts.load(strategy, wording, t.prompts),
            temperature=t.temperature,
            max_tokens=t.max_tokens,
            seed=t.seed,
        )
        inputs = {"improves": improves} if improves else {}
        label = f"{t.model} {strategy}" + (f" wording {wording}" if wording else "")
        return self._replies(RepliesSpec(responder=responder), label, **inputs)

    def _replies(self, spec: RepliesSpec, label: str, **inputs: Stage) -> Stage:
        return Stage(spec, {"dialogues": self.dialogues} | inputs, label=label)

    def _answers(self, teacher: str | None) -> Stage:
        """The teacher's own answers: recorded with the data, or asked for."""
        return self.recorded(teacher) if teacher in self.x.data.source.responders else self.asked("direct")

    # ---- lessons

    def __iter__(self) -> Iterator[Lesson]:
        for arms in self.x.arms:
            axes = (arms.method, arms.teacher or (None,), arms.strategy or (None,), arms.wording or (None,))
            for values in product(*axes):
                yield self._lesson(*values)

    def _lesson(self, method: Method, teacher: str | None, strategy: str | None, wording: int | None) -> Lesson:
        train, asked = self.x.train, self.x.teacher
        who = teacher or (asked.model if asked else None)
        if method == "human":
            return Lesson(Human(least_rating=3), None, None, self.recorded("human"))
        if method == "direct":
            good = bool(asked and asked.unrated_is_good and who == asked.model)
            direct = Direct(both_replies=train.both_replies, unrated_is_good=good)
            learned = self.asked(strategy, wording or 0) if strategy else self._answers(teacher)
            return Lesson(direct, who, strategy, learned, wording=wording)
        assert strategy, "checked when the file was read"
        spec: MethodSpec = ImproveHuman(both_replies=train.both_replies)
        initial = None
        if method == "improve_llm":
            spec, initial = self._method_3(), self._answers(teacher)
        rewritten = self.asked(strategy, wording or 0, initial or self.recorded("human"))
        return Lesson(spec, who, strategy, rewritten, initial, wording)

    def _method_3(self) -> ImproveLlm:
        train = self.x.train
        return ImproveLlm(
            both_replies=train.both_replies,
            rejected=train.rejected,
            original=train.original,
            division=train.division,
            division_seed=train.division_seed,
        )

    # ---- examples

    def examples(self, lesson: Lesson, objective: str, purpose: str = "train") -> Stage:
        """What is learned from, or measured on ("heldout")."""
        data = self.x.data
        heldout = purpose == "heldout"
        rating = self._rating(lesson, objective, purpose)
        spec = ExamplesSpec(
            method=lesson.method,
            objective=objective,
            purpose=purpose,
            split="test" if heldout else "train",
            system=self.x.generate.system,
            screens=() if heldout else data.screens,
            max_dropped=data.max_dropped,
            good=self.x.ratings.good if self.x.ratings and rating else None,
        )
        inputs = {"dialogues": self.dialogues} | rating
        if lesson.learned:
            inputs["replies"] = lesson.learned
        if lesson.initial:
            inputs["initial"] = lesson.initial
        return Stage(spec, inputs, label=f"{objective} {purpose} {lesson.name}")

    def _rating(self, lesson: Lesson, objective: str, purpose: str) -> dict[str, Stage]:
        """The judge's scores that the set is selected by; none where people's ratings decide, or nothing does."""
        at_random = isinstance(lesson.method, ImproveLlm) and lesson.method.division == "random"
        if self.x.ratings is None or at_random or (purpose, objective) == ("heldout", "sft"):
            return {}
        found = {"scores:human": scores(self.x.ratings, self.dialogues, self.recorded("human"))}
        if isinstance(lesson.method, Direct):
            assert lesson.learned, "direct learns from a teacher"
            found["scores:learned"] = scores(self.x.ratings, self.dialogues, lesson.learned)
        return found
