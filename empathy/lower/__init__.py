"""An experiment -> the graph of stages that answers it.

Shared work is shared by construction: stages with equal keys are one stage, so this package says plainly what each arm
needs and never looks for what another arm already has.
"""

from __future__ import annotations

from itertools import product

from empathy import dialogues
from empathy.experiment import Experiment
from empathy.lower.cells import Cell, Lesson, Lowered, served_names
from empathy.lower.judging import compared
from empathy.lower.lessons import Lessons
from empathy.lower.students import Students
from empathy.specs import ReportSpec
from empathy.stages import Stage

__all__ = ["Cell", "Lesson", "Lowered", "lower"]


def lower(experiment: Experiment) -> Lowered:
    """The graph of an experiment. Reads sources to hash their content, and nothing else. Raises ValueError."""
    return _Lowering(experiment).lower()


class _Lowering:
    """The inputs of the report, slot by slot (`empathy.report.cells` reads them back)."""

    def __init__(self, x: Experiment):
        data = x.data
        self.x = x
        self.dialogues = dialogues.stage(
            data.source, data.split, limit=data.limit, seed=data.seed, part_rows=data.part_rows
        )
        self.lessons = Lessons(x, self.dialogues)
        self.students = Students(x, self.lessons)
        self.human = self.lessons.recorded("human")
        self.inputs: dict[str, Stage] = {"dialogues": self.dialogues, "human:replies": self.human}
        self.names: dict[str, str] = {}
        self.cells: list[Cell] = []
        self.bases: dict[str, Stage] = {}

    def lower(self) -> Lowered:
        lessons = list(self.lessons)
        heldout = [{o: self.lessons.examples(n, o, "heldout") for o in ("sft", "dpo")} for n in lessons]
        for j, lesson in enumerate(lessons):
            self._taught(j, lesson, heldout[j])
        for k, student in enumerate(self.x.student_names):
            base = self._base(k, student)
            for j, lesson in enumerate(lessons):
                self._scores(f"base{k}", self.bases[student], j, lesson, heldout[j])
                for regime, seed in product(self.x.grid.regime, self.x.grid.seed):
                    if lesson.method.type == "human" and regime != "sft":
                        continue  # no teacher, no pairs
                    slot, label = f"a{len(self.cells):03d}", f"{student} {regime} {lesson.name} seed={seed}"
                    tuned = self.students.tuned(self.bases[student], lesson, regime, seed, label)
                    replies = self.students.answers(tuned, f"{label} answers")
                    cell = Cell(slot, student, regime, seed, lesson, tuned, replies)
                    self._cell(cell, j, {f"base{k}": base})
                    self._scores(slot, tuned, j, lesson, heldout[j])
        r = self.x.report
        spec = ReportSpec(bootstrap=r.bootstrap, seed=r.seed, examples_shown=r.examples_shown)
        report = Stage(spec, self.inputs, locator=self.names, label="report")
        served = served_names(self.cells, self.bases, seeds=len(self.x.grid.seed))
        return Lowered(report, tuple(self.cells), self.bases, served)

    def _taught(self, j: int, lesson: Lesson, heldout: dict[str, Stage]) -> None:
        self.names[str(j)] = lesson.name
        if lesson.teacher and lesson.learned:
            self.inputs[f"teacher:{j}:replies"] = lesson.learned
        for objective, stage in heldout.items():
            if lesson.teacher or objective == "sft":
                self.inputs[f"heldout:{objective}:{j}"] = stage

    def _base(self, k: int, student: str) -> Stage:
        """Its answers."""
        base = self.bases[student] = self.students.base(student)
        replies = self.students.answers(base, f"{student} base answers")
        self.names[f"base{k}"] = f"{student} (base)"
        self.inputs |= {f"base{k}:checkpoint": base, f"base{k}:replies": replies}
        return replies

    def _cell(self, cell: Cell, j: int, base: dict[str, Stage]) -> None:
        self.cells.append(cell)
        self.names[cell.slot] = cell.name
        self.inputs |= {f"{cell.slot}:checkpoint": cell.checkpoint, f"{cell.slot}:replies": cell.replies}
        taught = cell.lesson.learned if cell.lesson.teacher else None
        there = {"base": base, "human": {"human": self.human}, "teacher": {f"teacher:{j}": taught} if taught else {}}
        opponents = {
            slot: replies for name in there if name in self.x.judge.opponents for slot, replies in there[name].items()
        }
        self.inputs |= compared(self.x, self.dialogues, cell, opponents)

    def _scores(self, slot: str, checkpoint: Stage, j: int, lesson: Lesson, heldout: dict[str, Stage]) -> None:
        """Held-out likelihood and preference accuracy."""
        nll = self.students.logprobs(checkpoint, heldout["sft"], f"held-out NLL {slot} {lesson.name}")
        self.inputs[f"{slot}:nll:{j}"] = nll
        if lesson.teacher:
            pairs = self.students.logprobs(checkpoint, heldout["dpo"], f"held-out pairs {slot} {lesson.name}")
            self.inputs[f"{slot}:pairs:{j}"] = pairs
