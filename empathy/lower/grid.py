"""Which cells an experiment's grid has, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from empathy.experiment import Experiment, Regime
from empathy.lower.cells import Lesson, cell_name
from empathy.words import meant


@dataclass(frozen=True)
class Wanted:
    """A cell before its stages."""

    student: str
    lesson: Lesson
    regime: Regime
    seed: int

    @property
    def factors(self) -> dict[str, str]:
        return {"student": self.student, "regime": self.regime, **self.lesson.factors, "seed": str(self.seed)}

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
    for pattern in only:
        if not pattern.split():
            raise ValueError(
                f"only = {pattern!r}: names no factor; leave it out for the whole grid, or choose by\n{_factors(grid)}"
            )
        if not any(_matches(w, pattern) for w in grid):
            raise ValueError(f"only = {pattern!r}: {_unmatched(grid, pattern)}\n{_factors(grid)}")
    return [w for w in grid if not only or any(_matches(w, pattern) for pattern in only)]


def _unmatched(grid: Sequence[Wanted], pattern: str) -> str:
    """Why a pattern matches none of the arms: a word that no arm has, or words that no arm has together."""
    unknown = [word for word in pattern.split() if not any(_matches(w, word) for w in grid)]
    if not unknown:
        return "no arm has all of these together; there are"
    hint = _near(grid, unknown[0])
    return f"no arm has {unknown[0]!r}{hint} There are" if hint else f"no arm has {unknown[0]!r}; there are"


def _near(grid: Sequence[Wanted], word: str) -> str:
    """What a word may mean: of "strategy=niave" a strategy, of "startegy=naive" a factor."""
    key, equals, value = word.partition("=")
    pairs = {(k, v) for w in grid for k, v in w.factors.items()}
    if not equals:
        return meant(word, sorted({v for _, v in pairs}))
    values = sorted(v for k, v in pairs if k == key)
    return meant(value, values) if values else meant(key, sorted({k for k, _ in pairs}))


def _factors(grid: Sequence[Wanted]) -> str:
    """Each factor of the cells with its values, a line each."""
    found: dict[str, dict[str, None]] = {}
    for w in grid:
        for key, value in w.factors.items():
            found.setdefault(key, {})[value] = None
    return "\n".join(f"  {key:<8}  {', '.join(values)}" for key, values in found.items())


def _matches(wanted: Wanted, pattern: str) -> bool:
    """Whether each word of `pattern` is a factor of the cell ("regime=sft") or, without "=", the value of one
    ("gpt-4"): the whole of it, or a glob of the whole. So "gpt-4" is not gpt-4o, and "regime=sft" not sft+dpo. A cell's
    own name always matches."""
    return pattern == wanted.name or all(
        any(_is(word, key, value) for key, value in wanted.factors.items()) for word in pattern.split()
    )


def _is(word: str, key: str, value: str) -> bool:
    text = f"{key}={value}" if "=" in word else value
    return text == word or fnmatchcase(text, word)
