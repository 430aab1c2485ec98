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
    """Whether each word of `pattern` matches a factor of a cell's name: "regime=sft" that one and not "regime=sft+dpo".

    A word may be a glob ("strategy=*naive"); one without "=" is looked for in the values ("gpt-4").
    """
    factors = name.split()
    return all(any(fnmatchcase(f, w) or ("=" not in w and w in f) for f in factors) for w in pattern.split())
