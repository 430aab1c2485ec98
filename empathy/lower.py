"""An experiment -> the graph of stages that answers it.

Shared work is shared by construction: stages with equal keys are one stage, so this file says plainly what each arm
needs and never looks for what another arm already has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from empathy import dialogues, judges, prompts, templates
from empathy.digests import digest_of_folder
from empathy.experiment import Arms, Experiment, Raise, Regime, StudentModel, Train
from empathy.specs import (
    CheckpointSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    Full,
    HubBase,
    Human,
    ImproveHuman,
    ImproveLlm,
    Judge,
    LogprobsSpec,
    MethodSpec,
    Objective,
    Optimiser,
    Recorded,
    RepliesSpec,
    ReportSpec,
    Sft,
    Student,
    Teacher,
    VerdictsSpec,
)
from empathy.stages import Stage


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn, apart from who learns it: a method, whose replies, and which strategy.

    `learned` are the replies to become like, `initial` what they improved on (method 3).
    """

    method: MethodSpec
    teacher: str | None
    strategy: str | None
    learned: Stage | None
    initial: Stage | None = None

    @property
    def name(self) -> str:
        parts = {"method": self.method.type, "teacher": self.teacher, "strategy": self.strategy}
        return " ".join(f"{k}={v}" for k, v in parts.items() if v)


@dataclass(frozen=True)
class Cell:
    """One trained student of the grid."""

    slot: str
    student: str
    regime: Regime
    seed: int
    lesson: Lesson
    checkpoint: Stage
    replies: Stage

    @property
    def name(self) -> str:
        return f"student={self.student} regime={self.regime} {self.lesson.name} seed={self.seed}"


@dataclass(frozen=True)
class Lowered:
    """The graph: `report` stands on everything; `cells` and `bases` (student name -> its base checkpoint) are for
    people."""

    report: Stage
    cells: tuple[Cell, ...]
    bases: dict[str, Stage]
    checkpoints: dict[str, Stage] = field(default_factory=dict)
    """Every checkpoint by the name that `empathy serve` takes."""


class _Lowering:
    def __init__(self, experiment: Experiment):
        self.x = experiment
        data = experiment.data
        self.dialogues = dialogues.stage(
            data.source, data.split, limit=data.limit, seed=data.seed, part_rows=data.part_rows
        )

    # ---- replies of others

    def recorded(self, responder: str) -> Stage:
        return Stage(
            RepliesSpec(responder=Recorded(responder=responder)),
            {"dialogues": self.dialogues},
            label=f"{responder} (recorded)",
        )

    def asked(self, prompt: str, improves: Stage | None = None) -> Stage:
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

    def lessons(self) -> Iterator[Lesson]:
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
            return Lesson(
                ImproveHuman(both_replies=train.both_replies), who, strategy, self.asked(str(strategy), human)
            )
        initial = self.answers(teacher)
        spec3 = ImproveLlm(both_replies=train.both_replies, rejected=train.rejected)
        return Lesson(spec3, who, strategy, self.asked(str(strategy), initial), initial)

    def examples(self, lesson: Lesson, objective: str, purpose: str = "train") -> Stage:
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

    # ---- students

    def base(self, name: str, student: StudentModel) -> Stage:
        train = self.x.train
        template = None if student.template == "own" else templates.load(student.template)
        common: dict[str, Any] = {
            "template": template,
            "max_length_tokens": train.max_length_tokens,
            "precision": train.precision,
        }
        if student.model is not None:
            return self.found(name, student, common)
        raising = student.raised
        assert raising is not None, "checked when the file was read"
        corpus = self.corpus(raising)
        spoken = ExamplesSpec(method=Human(), objective="sft", system=self.x.generate.system)
        examples = Stage(spoken, {"dialogues": corpus}, label=f"raising {name}")
        spec = CheckpointSpec(base=student.size, objective=_full(raising.optimiser), **common)
        return Stage(spec, {"examples": examples}, label=f"{name} base, raised")

    def corpus(self, raising: Raise) -> Stage:
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

    def found(self, name: str, student: StudentModel, common: dict[str, Any]) -> Stage:
        model = str(student.model)
        folder = Path(model).expanduser()
        if folder.is_dir():
            base = HubBase(model=folder.name, digest=digest_of_folder(folder))
        else:
            base = HubBase(model=model, revision=student.revision)
        return Stage(CheckpointSpec(base=base, **common), locator={"path": model}, label=f"{name} base")

    def logprobs(self, checkpoint: Stage, examples: Stage, label: str) -> Stage:
        train = self.x.train
        spec = LogprobsSpec(max_length_tokens=train.max_length_tokens, precision=train.precision)
        return Stage(spec, {"checkpoint": checkpoint, "examples": examples}, label=label)

    def tuned(self, base: Stage, lesson: Lesson, regime: Regime, seed: int, label: str) -> Stage:
        train = self.x.train

        def checkpoint(objective: Objective, inputs: dict[str, Stage], step: str) -> Stage:
            spec = CheckpointSpec(
                objective=objective, max_length_tokens=train.max_length_tokens, precision=train.precision, seed=seed
            )
            return Stage(spec, {"base": base} | inputs, label=f"{step} {label}")

        sft = None
        if regime != "dpo":
            sft = checkpoint(
                Sft(optimiser=train.sft, tuning=train.how), {"examples": self.examples(lesson, "sft")}, "sft"
            )
        if regime == "sft":
            assert sft is not None
            return sft
        pairs = self.examples(lesson, "dpo")
        reference = self.logprobs(sft or base, pairs, f"reference of {label}")
        inputs = {"examples": pairs, "reference": reference} | ({"policy": sft} if sft else {})
        return checkpoint(_dpo(train), inputs, regime)

    def answers_test(self, checkpoint: Stage, label: str) -> Stage:
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

    # ---- judging

    def verdicts(self, model: str, a: Stage, b: Stage, label: str) -> Stage:
        j = self.x.judge
        judge = Judge(
            provider=j.provider,
            model=model,
            mode=j.mode,
            template=judges.template(j.mode),
            temperature=j.temperature,
            max_tokens=j.max_tokens,
            repeats=j.repeats,
            attempts=j.attempts,
        )
        return Stage(
            VerdictsSpec(judge=judge, cap_words=j.cap_words), {"dialogues": self.dialogues, "a": a, "b": b}, label=label
        )

    def lower(self) -> Lowered:
        inputs: dict[str, Stage] = {"dialogues": self.dialogues}
        names: dict[str, str] = {}
        lessons = list(self.lessons())
        learned = [lesson for lesson in lessons if lesson.teacher]
        heldout = {
            j: {o: self.examples(lesson, o, "heldout") for o in ("sft", "dpo")} for j, lesson in enumerate(lessons)
        }
        human = self.recorded("human")
        inputs["human:replies"] = human
        for j, lesson in enumerate(lessons):
            names[str(j)] = lesson.name
            if lesson in learned and lesson.learned:
                inputs[f"teacher:{j}:replies"] = lesson.learned
            for o, stage in heldout[j].items():
                if lesson.teacher or o == "sft":
                    inputs[f"heldout:{o}:{j}"] = stage
        cells: list[Cell] = []
        bases: dict[str, Stage] = {}
        for k, name in enumerate(self.x.student_names):
            base = self.base(name, self.x.students[name])
            bases[name] = base
            names[f"base{k}"] = f"{name} (base)"
            replies = self.answers_test(base, f"{name} base answers")
            inputs |= {f"base{k}:checkpoint": base, f"base{k}:replies": replies}
            for j, lesson in enumerate(lessons):
                inputs |= self.scores(f"base{k}", base, j, lesson, heldout[j])
                for regime, seed in product(self.x.grid.regime, self.x.grid.seed):
                    if lesson.method.type == "human" and regime != "sft":
                        continue  # no teacher, no pairs
                    slot = f"a{len(cells):03d}"
                    label = f"{name} {regime} {lesson.name} seed={seed}"
                    checkpoint = self.tuned(base, lesson, regime, seed, label)
                    cell = Cell(
                        slot, name, regime, seed, lesson, checkpoint, self.answers_test(checkpoint, f"{label} answers")
                    )
                    cells.append(cell)
                    names[slot] = cell.name
                    inputs |= {f"{slot}:checkpoint": checkpoint, f"{slot}:replies": cell.replies}
                    inputs |= self.scores(slot, checkpoint, j, lesson, heldout[j])
                    inputs |= self.compared(cell, f"base{k}", replies, human, j)
        r = self.x.report
        spec = ReportSpec(bootstrap=r.bootstrap, seed=r.seed, examples_shown=r.examples_shown)
        report = Stage(spec, inputs, locator=names, label="report")
        return Lowered(report, tuple(cells), bases, _served_names(self.x, cells, bases))

    def scores(
        self, slot: str, checkpoint: Stage, j: int, lesson: Lesson, heldout: dict[str, Stage]
    ) -> dict[str, Stage]:
        """Held-out likelihood and preference accuracy."""
        found = {f"{slot}:nll:{j}": self.logprobs(checkpoint, heldout["sft"], f"held-out NLL {slot} {lesson.name}")}
        if lesson.teacher:
            found[f"{slot}:pairs:{j}"] = self.logprobs(
                checkpoint, heldout["dpo"], f"held-out pairs {slot} {lesson.name}"
            )
        return found

    def compared(self, cell: Cell, base_slot: str, base_replies: Stage, human: Stage, j: int) -> dict[str, Stage]:
        opponents: dict[str, Stage] = {}
        wanted = self.x.judge.opponents
        if "base" in wanted:
            opponents[base_slot] = base_replies
        if "human" in wanted:
            opponents["human"] = human
        if "teacher" in wanted and cell.lesson.teacher and cell.lesson.learned:
            opponents[f"teacher:{j}"] = cell.lesson.learned
        several = len(self.x.judge.models) > 1
        return {
            f"{cell.slot}:verdicts:{opponent}" + (f":judge{i}" if several else ""): self.verdicts(
                model, cell.replies, theirs, f"{cell.name} against {opponent}"
            )
            for opponent, theirs in opponents.items()
            for i, model in enumerate(self.x.judge.models)
        }


def _full(optimiser: Optimiser) -> Sft:
    return Sft(optimiser=optimiser, tuning=Full())


def _dpo(train: Train) -> Dpo:
    fields = train.dpo.model_dump()
    beta = fields.pop("beta")
    return Dpo(optimiser=Optimiser(**fields), tuning=train.how, beta=beta)


def _served_names(x: Experiment, cells: list[Cell], bases: dict[str, Stage]) -> dict[str, Stage]:
    """ "tiny" is a base; "tiny-sft-direct-gpt-4" a student, with its seed when the grid has several."""
    names = dict(bases)
    for cell in cells:
        parts = [
            cell.student,
            cell.regime.replace("+", "-"),
            cell.lesson.method.type,
            cell.lesson.teacher,
            cell.lesson.strategy,
        ]
        parts += [f"seed{cell.seed}"] if len(x.grid.seed) > 1 else []
        names["-".join(p for p in parts if p)] = cell.checkpoint
    return names


def lower(experiment: Experiment) -> Lowered:
    """The graph of an experiment. Reads sources to hash their content, and nothing else. Raises ValueError."""
    return _Lowering(experiment).lower()
