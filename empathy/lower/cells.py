"""What a lowered experiment is made of, for people: lessons, cells, and the names that they go by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from empathy.experiment import Regime
from empathy.specs import AnyMethod
from empathy.stages import Stage


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn, apart from who learns it: a method, whose replies, and which strategy.

    `learned` are the replies to become like, `initial` what they improved on (method 3). `wording` is None where the
    arms choose none. `screens` keep replies out of its training sets. `options` of the method are those that the arms
    set.
    """

    method: AnyMethod
    teacher: str | None
    strategy: str | None
    learned: Stage | None
    initial: Stage | None = None
    wording: int | None = None
    screens: tuple[str, ...] = ()
    options: Mapping[str, bool | str] = field(default_factory=dict, hash=False)

    @property
    def factors(self) -> dict[str, str]:
        """What tells it from other lessons, as far as it has it."""
        wording = None if self.wording is None else str(self.wording)
        found = {"method": self.method.type, "teacher": self.teacher, "strategy": self.strategy, "wording": wording}
        options = {name: str(value).lower() for name, value in self.options.items()}
        return {name: value for name, value in found.items() if value} | options

    @property
    def name(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.factors.items())


def cell_name(student: str, regime: Regime, lesson: Lesson, seed: int) -> str:
    """What people call a cell: its factors, as the report reads them back."""
    return f"student={student} regime={regime} {lesson.name} seed={seed}"


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
        return cell_name(self.student, self.regime, self.lesson, self.seed)


@dataclass(frozen=True)
class Lowered:
    """The graph: `report` stands on everything; `cells` and `bases` (student name -> its base checkpoint) are for
    people."""

    report: Stage
    cells: tuple[Cell, ...]
    bases: dict[str, Stage]
    checkpoints: dict[str, Stage] = field(default_factory=dict)
    """Every checkpoint by the name that `empathy serve` takes."""


def served_names(cells: Iterable[Cell], bases: Mapping[str, Stage], seeds: int) -> dict[str, Stage]:
    """ "tiny" is a base; "tiny-sft-direct-gpt-4" a student, with its seed when the grid has several (`seeds`).

    Raises ValueError naming both where two would go by one name.
    """
    names = dict(bases)
    whose = {name: f"students.{name}" for name in bases}
    for cell in cells:
        lesson = cell.lesson
        taught = [f"{k}{v}" if k == "wording" or k in lesson.options else v for k, v in lesson.factors.items()]
        parts = [cell.student, cell.regime.replace("+", "-"), *taught, *([f"seed{cell.seed}"] if seeds > 1 else [])]
        name = "-".join(parts)
        if name in names:
            raise ValueError(
                f"students: {whose[name]} and the trained student {cell.name!r} would both be served as {name!r}; "
                "rename a student"
            )
        names[name], whose[name] = cell.checkpoint, f"the trained student {cell.name!r}"
    return names
