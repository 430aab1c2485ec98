"""Who learns: bases as they are found or raised, what is trained from them, what they answer and how they score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from empathy import dialogues, templates
from empathy.digests import digest_of_folder
from empathy.experiment import Experiment, Raise, Regime, StudentModel, Train
from empathy.lower.cells import Lesson
from empathy.lower.lessons import Lessons
from empathy.specs import (
    CheckpointSpec,
    Dpo,
    ExamplesSpec,
    Full,
    HubBase,
    Human,
    LogprobsSpec,
    Objective,
    Optimiser,
    RepliesSpec,
    Sft,
    Student,
)
from empathy.stages import Stage


class Students:
    """The students of an experiment, and the lessons that they may be given."""

    def __init__(self, x: Experiment, lessons: Lessons):
        self.x, self.lessons, self.dialogues = x, lessons, lessons.dialogues

    # ---- bases

    def base(self, name: str) -> Stage:
        student, train = self.x.students[name], self.x.train
        template = None if student.template == "own" else templates.load(student.template)
        common: dict[str, Any] = {
            "template": template,
            "max_length_tokens": train.max_length_tokens,
            "precision": train.precision,
        }
        if student.model is not None:
            return self._found(name, student, common)
        raising = student.raised
        assert raising is not None, "checked when the file was read"
        spoken = ExamplesSpec(method=Human(), objective="sft", system=self.x.generate.system)
        examples = Stage(spoken, {"dialogues": self._corpus(raising)}, label=f"raising {name}")
        full = Sft(optimiser=raising.optimiser, tuning=Full())
        spec = CheckpointSpec(base=student.size, objective=full, **common)
        return Stage(spec, {"examples": examples}, label=f"{name} base, raised")

    def _corpus(self, raising: Raise) -> Stage:
        data = self.x.data
        if raising.source is None:
            return self.dialogues
        return dialogues.stage(
            raising.source,
            raising.split,
            only="train",
            limit=raising.limit,
            seed=data.seed,
            part_rows=data.part_rows,
            without=self.dialogues,
        )

    def _found(self, name: str, student: StudentModel, common: dict[str, Any]) -> Stage:
        model = str(student.model)
        folder = Path(model).expanduser()
        if folder.is_dir():
            base = HubBase(model=folder.name, digest=digest_of_folder(folder))
        else:
            base = HubBase(model=model, revision=student.revision)
        return Stage(CheckpointSpec(base=base, **common), locator={"path": model}, label=f"{name} base")

    # ---- training

    def tuned(self, base: Stage, student: str, lesson: Lesson, regime: Regime, seed: int) -> Stage:
        """A cell's checkpoint. DPO after SFT starts from the SFT checkpoint and refers to it, never to the base."""
        train = self.x.train

        def called(regime: Regime) -> str:
            return f"{student} {regime} {lesson.name} seed={seed}"

        def checkpoint(objective: Objective, inputs: dict[str, Stage], regime: Regime) -> Stage:
            spec = CheckpointSpec(
                objective=objective, max_length_tokens=train.max_length_tokens, precision=train.precision, seed=seed
            )
            return Stage(spec, {"base": base} | inputs, label=called(regime))

        sft = None
        if regime != "dpo":
            examples = self.lessons.examples(lesson, "sft")
            sft = checkpoint(Sft(optimiser=train.sft, tuning=train.how), {"examples": examples}, "sft")
        if regime == "sft":
            assert sft is not None
            return sft
        pairs = self.lessons.examples(lesson, "dpo")
        reference = self.logprobs(sft or base, pairs, f"reference of {called(regime)}")
        inputs = {"examples": pairs, "reference": reference} | ({"policy": sft} if sft else {})
        return checkpoint(_dpo(train), inputs, regime)

    # ---- what a checkpoint says

    def logprobs(self, checkpoint: Stage, examples: Stage, label: str) -> Stage:
        train = self.x.train
        spec = LogprobsSpec(max_length_tokens=train.max_length_tokens, precision=train.precision)
        return Stage(spec, {"checkpoint": checkpoint, "examples": examples}, label=label)

    def answers(self, checkpoint: Stage, label: str) -> Stage:
        """Its replies to the test dialogues."""
        g = self.x.generate
        responder = Student(
            system=g.system,
            temperature=g.temperature,
            max_tokens=g.max_tokens,
            seed=g.seed,
            precision=self.x.train.precision,
        )
        inputs = {"dialogues": self.dialogues, "checkpoint": checkpoint}
        return Stage(RepliesSpec(responder=responder, split="test"), inputs, label=label)


def _dpo(train: Train) -> Dpo:
    fields = train.dpo.model_dump()
    beta = fields.pop("beta")
    return Dpo(optimiser=Optimiser(**fields), tuning=train.how, beta=beta)
