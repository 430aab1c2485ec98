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
    """The cells of the grid that `only` matches, by student, lesson, regime and seed.

    Raises ValueError for a pattern without a word, or that matches none, with the factors that there are.
    """
    grid = [
        Wanted(*values)
        for values in product(x.student_names, lessons, x.grid.regime, x.grid.seed)
        if values[1].teacher or values[2] == "sft"  # no teacher, no pairs
    ]
    grid = list({w.name: w for w in grid}.values())  # an arm that the file names twice is one arm
    names = [w.name for w in grid]
    for pattern in only:
        if not pattern.split():
            raise ValueError(
                f"only = {pattern!r}: names no factor; leave it out for the whole grid, or choose by\n{_factors(names)}"
            )
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"only = {pattern!r}: {_unmatched(names, pattern)}\n{_factors(names)}")
    return [w for w in grid if not only or any(_matches(w.name, pattern) for pattern in only)]


def _unmatched(names: Sequence[str], pattern: str) -> str:
    """Why a pattern matches none of the arms: a word that no arm has, or words that no arm has together."""
    unknown = [word for word in pattern.split() if not any(_matches(name, word) for name in names)]
    return f"no arm has {repr(unknown[0]) if unknown else 'all of these together'}; there are"


def _factors(names: Sequence[str]) -> str:
    """Each factor of the cells with its values, a line each."""
    found: dict[str, dict[str, None]] = {}
    for name in names:
        for factor in name.split():
            key, _, value = factor.partition("=")
            found.setdefault(key, {})[value] = None
    return "\n".join(f"  {key:<8}  {', '.join(values)}" for key, values in found.items())


def _matches(name: str, pattern: str) -> bool:
    """Whether each word of `pattern` matches a factor of a cell's name: "regime=sft" that one and not "regime=sft+dpo".

    A word may be a glob ("strategy=*naive"); one without "=" is looked for in the values ("gpt-4").
    """
    factors = name.split()
    return all(any(fnmatchcase(f, w) or ("=" not in w and w in f) for f in factors) for w in pattern.split())
