"""An experiment -> the graph of stages that answers it.

Shared work is shared by construction: stages with equal keys are one stage, so this package says plainly what each arm
needs and never looks for what another arm already has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from empathy import dialogues
from empathy.experiment import Experiment
from empathy.experiment.arms import NAIVE
from empathy.lower.cells import Cell, Lesson, Lowered, cell_name, served_names
from empathy.lower.grid import Wanted, wanted
from empathy.lower.judging import Side, compared, rubric_scores
from empathy.lower.lessons import Lessons
from empathy.lower.students import Students
from empathy.specs import ReportSpec
from empathy.stages import Stage

__all__ = ["Cell", "Lesson", "Lowered", "lower"]


def lower(experiment: Experiment, only: Sequence[str] = (), without: Collection[str] = ()) -> Lowered:
    """The graph of an experiment. Reads sources to hash their content, and nothing else.

    `only` keeps the cells whose name ("student=llama regime=sft method=direct teacher=gpt-4 seed=0") one of the
    patterns matches: each of its words is a factor ("regime=sft") or a value ("gpt-4"), as it is or as a glob
    ("strategy=*naive"). `without` are names of cells to leave out. The stages of those that stay have the keys that
    they have in the whole grid. Raises ValueError for what a user can mend, such as a pattern that matches no cell or
    says nothing.
    """
    return _Lowering(experiment, only, without).lower()


@dataclass(frozen=True)
class _Taught:
    """A lesson, its number in the report, and what its students are measured on, by objective."""

    number: int
    lesson: Lesson
    heldout: dict[str, Stage]


class _Lowering:
    """The inputs of the report, slot by slot (`empathy.report.cells` reads them back)."""

    def __init__(self, x: Experiment, only: Sequence[str], without: Collection[str]):
        data = x.data
        self.x = x
        self.dialogues = dialogues.stage(
            data.source, data.split, limit=data.limit, seed=data.seed, part_rows=data.part_rows
        )
        self.lessons = Lessons(x, self.dialogues)
        self.students = Students(x, self.lessons)
        self.human = self.lessons.recorded("human")
        self.wanted = [w for w in wanted(x, list(self.lessons), only) if w.name not in without]
        self.inputs: dict[str, Stage] = {"dialogues": self.dialogues, "human:replies": self.human}
        self.names: dict[str, str] = {}
        self.cells: list[Cell] = []
        self.naive: dict[str, Cell] = {}
        """The naive arms by their `_naive_names`."""
        self.bases: dict[str, Stage] = {}
        self._scored("human", self.human)

    def lower(self) -> Lowered:
        lessons = list({w.lesson.name: w.lesson for w in self.wanted}.values())
        taught = {lesson.name: self._taught(j, lesson) for j, lesson in enumerate(lessons)}
        for k, student in enumerate(dict.fromkeys(w.student for w in self.wanted)):
            self._student(k, student, [w for w in self.wanted if w.student == student], taught)
        r = self.x.report
        spec = ReportSpec(bootstrap=r.bootstrap, seed=r.seed, examples_shown=r.examples_shown)
        report = Stage(spec, self.inputs, locator=self.names, label="report")
        served = served_names(self.cells, self.bases, seeds=len(self.x.grid.seed))
        return Lowered(report, tuple(self.cells), self.bases, served)

    def _student(self, k: int, student: str, wanted: list[Wanted], taught: dict[str, _Taught]) -> None:
        """A base and its cells; these are compared when all are there, because some are compared with each other."""
        mine = list({w.lesson.name: taught[w.lesson.name] for w in wanted}.values())
        self._base(k, student, mine)
        cells = [self._cell(w, taught[w.lesson.name]) for w in wanted]
        for cell in cells:
            self._compared(cell, k, taught[cell.lesson.name])

    def _taught(self, j: int, lesson: Lesson) -> _Taught:
        heldout = {
            o: self.lessons.examples(lesson, o, "heldout") for o in ("sft", "dpo") if lesson.teacher or o == "sft"
        }
        self.names[str(j)] = lesson.name
        self.inputs |= {f"heldout:{objective}:{j}": stage for objective, stage in heldout.items()}
        if lesson.teacher and lesson.learned:
            self.inputs[f"teacher:{j}:replies"] = lesson.learned
            self._scored(f"teacher:{j}", lesson.learned)
        return _Taught(j, lesson, heldout)

    def _base(self, k: int, student: str, lessons: list[_Taught]) -> None:
        """The base, its answers, and how they compare with people's and with the teachers' of its students: what was
        there before."""
        slot, name = f"base{k}", f"{student} (base)"
        base = self.bases[student] = self.students.base(student)
        replies = self.students.answers(base, f"{student} base answers")
        self.names[slot] = name
        self.inputs |= {f"{slot}:checkpoint": base, f"{slot}:replies": replies}
        self._scored(slot, replies)
        opponents = self._human() | {slot: r for taught in lessons for slot, r in self._teacher(taught).items()}
        self._verdicts(Side(slot, replies, name), opponents)
        for taught in lessons:
            self._scores(slot, base, taught)

    def _cell(self, wanted: Wanted, taught: _Taught) -> Cell:
        digits = max(3, len(str(len(self.wanted) - 1)))  # slots are sorted as texts
        slot = f"a{len(self.cells):0{digits}d}"
        student = wanted.student
        tuned = self.students.tuned(self.bases[student], student, wanted.lesson, wanted.regime, wanted.seed)
        replies = self.students.answers(tuned, f"{tuned.label} answers")
        cell = Cell(slot, student, wanted.regime, wanted.seed, wanted.lesson, tuned, replies)
        self.cells.append(cell)
        if cell.lesson.strategy == NAIVE:
            for name in _naive_names(cell):
                self.naive.setdefault(name, cell)
        self.names[slot] = cell.name
        self.inputs |= {f"{slot}:checkpoint": tuned, f"{slot}:replies": replies}
        self._scored(slot, replies)
        self._scores(slot, tuned, taught)
        return cell

    def _compared(self, cell: Cell, k: int, taught: _Taught) -> None:
        base = {f"base{k}": self.inputs[f"base{k}:replies"]} if "base" in self.x.judge.opponents else {}
        opponents = base | self._human() | self._teacher(taught) | self._naive(cell)
        self._verdicts(Side(cell.slot, cell.replies, cell.name), opponents)

    def _verdicts(self, side: Side, opponents: dict[str, Stage]) -> None:
        theirs = [Side(slot, replies, self._called(slot)) for slot, replies in opponents.items()]
        self.inputs |= compared(self.x, self.dialogues, side, theirs)

    def _scored(self, slot: str, replies: Stage) -> None:
        """A rubric's scores of the replies, where the experiment asks for them."""
        self.inputs |= rubric_scores(self.x, self.dialogues, Side(slot, replies, self._called(slot)))

    def _called(self, slot: str) -> str:
        """What people call an opponent."""
        if slot == "human":
            return "the human reply"
        kind, _, lesson = slot.partition(":")
        return f"the teacher's reply ({self.names[lesson]})" if kind == "teacher" else self.names[slot]

    def _human(self) -> dict[str, Stage]:
        return {"human": self.human} if "human" in self.x.judge.opponents else {}

    def _teacher(self, taught: _Taught) -> dict[str, Stage]:
        slot = f"teacher:{taught.number}"
        there = "teacher" in self.x.judge.opponents and f"{slot}:replies" in self.inputs
        return {slot: self.inputs[f"{slot}:replies"]} if there else {}

    def _naive(self, cell: Cell) -> dict[str, Stage]:
        """The arm that differs in its strategy alone, which is the naive one."""
        if "naive" not in self.x.judge.opponents or cell.lesson.strategy in (None, NAIVE):
            return {}
        naive = next((self.naive[name] for name in _naive_names(cell) if name in self.naive), None)
        return {naive.slot: naive.replies} if naive else {}

    def _scores(self, slot: str, checkpoint: Stage, taught: _Taught) -> None:
        """Held-out likelihood and preference accuracy."""
        j, name = taught.number, taught.lesson.name
        for objective, what, measured in (("sft", "nll", "NLL"), ("dpo", "pairs", "pairs")):
            if objective in taught.heldout:
                on = "" if name in self.names[slot] else f" on {name}"  # an arm is measured on its own lesson alone
                label = f"held-out {measured} of {self.names[slot]}{on}"
                stage = self.students.logprobs(checkpoint, taught.heldout[objective], label)
                self.inputs[f"{slot}:{what}:{j}"] = stage


def _naive_names(cell: Cell) -> list[str]:
    """What the arm would be called that differs from a cell in having the naive strategy: with the wording that its
    arms chose, and with the one that it has: none chosen is the first."""
    wordings = (cell.lesson.wording, cell.lesson.wording or 0)
    lessons = [replace(cell.lesson, strategy=NAIVE, wording=wording) for wording in wordings]
    return [cell_name(cell.student, cell.regime, lesson, cell.seed) for lesson in lessons]
