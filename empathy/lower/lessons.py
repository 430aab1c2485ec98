"""What there is to learn: the replies of people and teachers, and the sets of examples made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from empathy import prompts
from empathy.experiment import Experiment
from empathy.lower.cells import Lesson
from empathy.lower.judging import scores
from empathy.records import GOOD, HUMAN
from empathy.specs import METHODS, AnyMethod, ExamplesSpec, Pooled, Recorded, RepliesSpec, Teacher
from empathy.specs.sides import Sides
from empathy.stages import Stage


class Lessons:
    """The lessons of an experiment on `dialogues`."""

    def __init__(self, x: Experiment, dialogues: Stage):
        self.x, self.dialogues = x, dialogues
        self.read: Sides = ("train", "test") if x.data.has_valid else None
        """The sides that anything reads; all, where there are no others."""

    # ---- replies

    def recorded(self, responder: str) -> Stage:
        """What was stored with the data, "human" included."""
        return self._replies(RepliesSpec(responder=Recorded(responder=responder)), f"{responder} (recorded)")

    def asked(self, strategy: str, wording: int = 0, improves: Stage | None = None) -> Stage:
        """What the [teacher] model says to a prompt, rewriting `improves` if the prompt does. A union's replies are
        those of its strategies, pooled."""
        t = self.x.teacher
        assert t is not None, "checked when the file was read"
        label = f"{t.model} {strategy}" + (f" wording {wording}" if wording else "")
        label += f" on {improves.label}" if improves else ""
        parts = prompts.parts(strategy, t.prompts)
        if parts != (strategy,):
            pooled = {f"of:{k}": self.asked(part, wording, improves) for k, part in enumerate(parts)}
            return self._replies(RepliesSpec(responder=Pooled(), split=self.read), label, **pooled)
        responder = Teacher(
            provider=t.provider,
            model=t.model,
            turns=prompts.load(strategy, wording, t.prompts),
            temperature=t.temperature,
            max_tokens=t.max_tokens,
            seed=t.seed,
        )
        inputs = {"improves": improves} if improves else {}
        return self._replies(RepliesSpec(responder=responder, split=self.read), label, **inputs)

    def _replies(self, spec: RepliesSpec, label: str, **inputs: Stage) -> Stage:
        return Stage(spec, {"dialogues": self.dialogues} | inputs, label=label)

    def _answers(self, teacher: str | None) -> Stage:
        """The teacher's own answers: recorded with the data, or asked for."""
        return self.recorded(teacher) if teacher in self.x.data.source.responders else self.asked("direct")

    # ---- lessons

    def __iter__(self) -> Iterator[Lesson]:
        known = dict[str, tuple[str, ...]]()
        for arms in self.x.arms:
            axes = (arms.method, arms.teacher or (None,), arms.strategy or (None,), arms.wording or (None,))
            screens = self.x.data.screens if arms.screens is None else arms.screens
            for values, said in product(product(*axes), product(*arms.options.values())):
                options = dict(zip(arms.options, said, strict=True))
                lesson = replace(self._lesson(*values, options), screens=screens, options=options)
                if (before := known.setdefault(lesson.name, screens)) != screens:
                    raise ValueError(
                        f"arms.screens = {list(screens)}: {lesson.name} is listed twice, and has {list(before)} there; "
                        "list it once"
                    )
                yield lesson

    def _lesson(
        self, name: str, teacher: str | None, strategy: str | None, wording: int | None, options: Mapping[str, Any]
    ) -> Lesson:
        asked = self.x.teacher
        who = teacher or (asked.model if asked else None)
        method = self._method(name, who, options)
        if method.learns == "human":
            return Lesson(method, None, None, self.recorded(HUMAN))
        if method.learns == "answers":
            learned = self.asked(strategy, wording or 0) if strategy else self._answers(teacher)
            return Lesson(method, who, strategy, learned, wording=wording)
        assert strategy, "checked when the file was read"
        if method.learns == "rewritten_human":
            rewritten = self.asked(strategy, wording or 0, self.recorded(HUMAN))
            return Lesson(method, who, strategy, rewritten, wording=wording)
        initial = self._answers(teacher)
        return Lesson(method, who, strategy, self.asked(strategy, wording or 0, initial), initial, wording)

    def _method(self, name: str, teacher: str | None, arms: Mapping[str, Any]) -> AnyMethod:
        """The method with what the arms, or else [train], say of its options."""
        asked, kind = self.x.teacher, METHODS[name]
        good = bool(asked and asked.unrated_is_good and teacher == asked.model)
        options = self.x.train.model_dump() | {"unrated_is_good": good, "least_rating": GOOD, **arms}
        return kind.model_validate({field: options[field] for field in kind.model_fields if field in options})

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
            screens=() if heldout else lesson.screens,
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
        at_random = getattr(lesson.method, "division", None) == "random"
        if self.x.ratings is None or at_random or (purpose, objective) == ("heldout", "sft"):
            return {}
        found = {"scores:human": scores(self.x.ratings, self.dialogues, self.recorded(HUMAN), self.read)}
        if lesson.method.learns == "answers":
            assert lesson.learned
            found["scores:learned"] = scores(self.x.ratings, self.dialogues, lesson.learned, self.read)
        return found
