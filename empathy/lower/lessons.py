"""What there is to learn: the replies of people and teachers, and the sets of examples made of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from empathy import prompts
from empathy.experiment import Arms, Experiment
from empathy.lower.cells import Lesson
from empathy.specs import (
    Direct,
    ExamplesSpec,
    Human,
    ImproveHuman,
    ImproveLlm,
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
        return Stage(
            RepliesSpec(responder=Recorded(responder=responder)),
            {"dialogues": self.dialogues},
            label=f"{responder} (recorded)",
        )

    def asked(self, prompt: str, improves: Stage | None = None) -> Stage:
        """What the [teacher] model says to a prompt, rewriting `improves` if the prompt does."""
        t = self.x.teacher
        assert t is not None, "checked when the file was read"
        responder = Teacher(
            provider=t.provider,
            model=t.model,
            turns=prompts.load(prompt, wording=t.wording, folder=t.prompts),
            temperature=t.temperature,
            max_tokens=t.max_tokens,
            seed=t.seed,
        )
        inputs = {"dialogues": self.dialogues} | ({"improves": improves} if improves else {})
        return Stage(RepliesSpec(responder=responder), inputs, label=f"{t.model} {prompt}")

    def answers(self, teacher: str | None) -> Stage:
        """The teacher's own answers: recorded with the data, or asked for."""
        if teacher in self.x.data.source.responders:
            return self.recorded(str(teacher))
        return self.asked("direct")

    # ---- lessons

    def __iter__(self) -> Iterator[Lesson]:
        for arms in self.x.arms:
            for method, teacher, strategy in product(arms.method, arms.teacher or (None,), arms.strategy or (None,)):
                yield self.lesson(arms, method, teacher, strategy)

    def lesson(self, arms: Arms, method: str, teacher: str | None, strategy: str | None) -> Lesson:
        train, asked = self.x.train, self.x.teacher
        who = teacher or (asked.model if asked else None)
        if method == "human":
            return Lesson(Human(least_rating=3), None, None, self.recorded("human"))
        if method == "direct":
            good = bool(asked and asked.unrated_is_good and who == asked.model)
            spec = Direct(both_replies=train.both_replies, unrated_is_good=good)
            return Lesson(spec, who, None, self.answers(teacher))
        if method == "improve_human":
            human = self.recorded("human")
            rewrites = ImproveHuman(both_replies=train.both_replies)
            return Lesson(rewrites, who, strategy, self.asked(str(strategy), human))
        initial = self.answers(teacher)
        spec3 = ImproveLlm(both_replies=train.both_replies, rejected=train.rejected)
        return Lesson(spec3, who, strategy, self.asked(str(strategy), initial), initial)

    # ---- examples

    def examples(self, lesson: Lesson, objective: str, purpose: str = "train") -> Stage:
        """What is learned from, or measured on ("heldout")."""
        data = self.x.data
        heldout = purpose == "heldout"
        spec = ExamplesSpec(
            method=lesson.method,
            objective=objective,
            purpose=purpose,
            split="test" if heldout else "train",
            system=self.x.generate.system,
            screens=() if heldout else data.screens,
            max_dropped=data.max_dropped,
        )
        inputs = {"dialogues": self.dialogues}
        if lesson.learned:
            inputs["replies"] = lesson.learned
        if lesson.initial:
            inputs["initial"] = lesson.initial
        return Stage(spec, inputs, label=f"{objective} {purpose} {lesson.name}")
