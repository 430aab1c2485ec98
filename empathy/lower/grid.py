"""Which cells an experiment's grid has, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from empathy.experiment import Experiment, Regime
from empathy.lower.cells import Lesson, cell_name


@dataclass(frozen=True)
class Wanted:
    """A cell before its stages."""

    student: str
    lesson: Lesson
    regime: Regime
    seed: int

    @property
    def name(self) -> str:
        return cell_name(self.student, self.regime, self.lesson, self.seed)


def wanted(x: Experiment, lessons: Sequence[Lesson], only: Sequence[str]) -> list[Wanted]:
    """The cells of the grid that `only` matches, by student, lesson, regime and seed."""
    grid = [
        Wanted(*values)
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
