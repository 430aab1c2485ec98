"""An experiment -> the graph of stages that answers it.

Shared work is shared by construction: stages with equal keys are one stage, so this package says plainly what each arm
needs and never looks for what another arm already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product

from empathy import dialogues
from empathy.experiment import Experiment, Regime
from empathy.lower.cells import Cell, Lesson, Lowered, cell_name, served_names
from empathy.lower.judging import Side, compared
from empathy.lower.lessons import Lessons
from empathy.lower.students import Students
from empathy.specs import ReportSpec
from empathy.stages import Stage

NAIVE = "naive"
"""The strategy that the others are compared with."""

__all__ = ["Cell", "Lesson", "Lowered", "lower"]


def lower(experiment: Experiment, only: Sequence[str] = ()) -> Lowered:
    """The graph of an experiment. Reads sources to hash their content, and nothing else.

    `only` keeps the cells whose name ("student=llama regime=sft method=direct teacher=gpt-4 seed=0") one of the
    patterns matches, as a glob or as a part of it; their stages have the keys that they have in the whole grid. Raises
    ValueError for what a user can mend, such as a pattern that matches no cell.
    """
    return _Lowering(experiment, only).lower()


@dataclass(frozen=True)
class _Wanted:
    """A cell before its stages."""

    student: str
    lesson: Lesson
    regime: Regime
    seed: int

    @property
    def name(self) -> str:
        return cell_name(self.student, self.regime, self.lesson, self.seed)


def _wanted(x: Experiment, lessons: Sequence[Lesson], only: Sequence[str]) -> list[_Wanted]:
    """The cells of the grid that `only` matches, by student, lesson, regime and seed."""
    grid = [
        _Wanted(*values)
        for values in product(x.student_names, lessons, x.grid.regime, x.grid.seed)
        if values[1].teacher or values[2] == "sft"  # no teacher, no pairs
    ]
    grid = list({w.name: w for w in grid}.values())  # an arm that the file names twice is one arm
    names = [w.name for w in grid]
    for pattern in only:
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"only = {pattern!r}: matches no cell; there are\n  " + "\n  ".join(names))
    return [w for w in grid if not only or any(_matches(w.name, pattern) for pattern in only)]


def _matches(name: str, pattern: str) -> bool:
    return pattern in name or fnmatchcase(name, pattern)


class _Lowering:
    """The inputs of the report, slot by slot (`empathy.report.cells` reads them back)."""

    def __init__(self, x: Experiment, only: Sequence[str]):
        data = x.data
        self.x = x
        self.dialogues = dialogues.stage(
            data.source, data.split, limit=data.limit, seed=data.seed, part_rows=data.part_rows
        )
        self.lessons = Lessons(x, self.dialogues)
        self.students = Students(x, self.lessons)
        self.human = self.lessons.recorded("human")
        self.wanted = _wanted(x, list(self.lessons), only)
        self.inputs: dict[str, Stage] = {"dialogues": self.dialogues, "human:replies": self.human}
        self.names: dict[str, str] = {}
        self.cells: list[Cell] = []
        self.bases: dict[str, Stage] = {}

    def lower(self) -> Lowered:
        lessons = list({w.lesson.name: w.lesson for w in self.wanted}.values())
        number = {lesson.name: j for j, lesson in enumerate(lessons)}
        heldout = [{o: self.lessons.examples(n, o, "heldout") for o in ("sft", "dpo")} for n in lessons]
        for j, lesson in enumerate(lessons):
            self._taught(j, lesson, heldout[j])
        for k, student in enumerate(dict.fromkeys(w.student for w in self.wanted)):
            mine = [w for w in self.wanted if w.student == student]
            numbers = list(dict.fromkeys(number[w.lesson.name] for w in mine))
            self._base(k, student, numbers)
            for j in numbers:
                self._scores(f"base{k}", self.bases[student], j, lessons[j], heldout[j])
            for wanted in mine:
                cell, j = self._cell(wanted), number[wanted.lesson.name]
                self._scores(cell.slot, cell.checkpoint, j, cell.lesson, heldout[j])
            for cell in self.cells[-len(mine) :]:
                self._compared(cell, k, number[cell.lesson.name])
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

    def _base(self, k: int, student: str, lessons: list[int]) -> None:
        """The base's answers, and how they compare with people's and with the teachers' of its students: what was
        there before."""
        slot, name = f"base{k}", f"{student} (base)"
        base = self.bases[student] = self.students.base(student)
        replies = self.students.answers(base, f"{student} base answers")
        self.names[slot] = name
        self.inputs |= {f"{slot}:checkpoint": base, f"{slot}:replies": replies}
        opponents = self._human() | {s: r for j in lessons for s, r in self._teacher(j).items()}
        self.inputs |= compared(self.x, self.dialogues, Side(slot, replies, name), opponents)

    def _cell(self, wanted: _Wanted) -> Cell:
        slot, label = (
            f"a{len(self.cells):03d}",
            f"{wanted.student} {wanted.regime} {wanted.lesson.name} seed={wanted.seed}",
        )
        tuned = self.students.tuned(self.bases[wanted.student], wanted.lesson, wanted.regime, wanted.seed, label)
        replies = self.students.answers(tuned, f"{label} answers")
        cell = Cell(slot, wanted.student, wanted.regime, wanted.seed, wanted.lesson, tuned, replies)
        self.cells.append(cell)
        self.names[slot] = cell.name
        self.inputs |= {f"{slot}:checkpoint": tuned, f"{slot}:replies": replies}
        return cell

    def _compared(self, cell: Cell, k: int, j: int) -> None:
        base = {f"base{k}": self.inputs[f"base{k}:replies"]} if "base" in self.x.judge.opponents else {}
        opponents = base | self._human() | self._teacher(j) | self._naive(cell)
        self.inputs |= compared(self.x, self.dialogues, Side(cell.slot, cell.replies, cell.name), opponents)

    def _human(self) -> dict[str, Stage]:
        return {"human": self.human} if "human" in self.x.judge.opponents else {}

    def _teacher(self, j: int) -> dict[str, Stage]:
        slot, wanted = f"teacher:{j}", "teacher" in self.x.judge.opponents
        return {slot: self.inputs[f"{slot}:replies"]} if wanted and f"{slot}:replies" in self.inputs else {}

    def _naive(self, cell: Cell) -> dict[str, Stage]:
        """The arm that differs in its strategy alone, which is the naive one."""
        if "naive" not in self.x.judge.opponents or cell.lesson.strategy in (None, NAIVE):
            return {}
        naive = cell_name(cell.student, cell.regime, replace(cell.lesson, strategy=NAIVE), cell.seed)
        return {c.slot: c.replies for c in self.cells if c.name == naive}

    def _scores(self, slot: str, checkpoint: Stage, j: int, lesson: Lesson, heldout: dict[str, Stage]) -> None:
        """Held-out likelihood and preference accuracy."""
        nll = self.students.logprobs(checkpoint, heldout["sft"], f"held-out NLL {slot} {lesson.name}")
        self.inputs[f"{slot}:nll:{j}"] = nll
        if lesson.teacher:
            pairs = self.students.logprobs(checkpoint, heldout["dpo"], f"held-out pairs {slot} {lesson.name}")
            self.inputs[f"{slot}:pairs:{j}"] = pairs
