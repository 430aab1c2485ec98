"""The experiment file: a question in TOML. `empathy.lower` turns it into stages.

What is here is typed and closed: a misspelt field, an unknown strategy or a missing source is refused when the file
is read.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, model_validator

from empathy import documents, prompts
from empathy.experiment.arms import Arms, Grid, Method, Regime
from empathy.experiment.asked import Judging, Teacher
from empathy.experiment.data import Data
from empathy.experiment.sections import Section
from empathy.experiment.students import DpoOptimiser, Generate, Raise, StudentModel, Train

__all__ = [
    *("Arms", "Data", "DpoOptimiser", "Experiment", "Generate", "Grid", "Judging", "Method", "Raise", "Regime"),
    *("Report", "Section", "StudentModel", "Teacher", "Train", "load"),
]


class Report(Section):
    """How the numbers are made."""

    bootstrap: int = Field(10_000, ge=100)
    seed: int = 0
    examples_shown: int = Field(5, ge=0)


class Experiment(Section):
    """The whole file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    question: str
    expect: str = ""
    differs: str = ""
    """What is not as in the paper it follows."""
    data: Data
    teacher: Teacher | None = None
    students: dict[str, StudentModel] = Field(min_length=1)
    train: Train = Train()
    generate: Generate = Generate()
    judge: Judging
    arms: tuple[Arms, ...] = Field(min_length=1)
    grid: Grid = Grid()
    report: Report = Report()

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        unknown = [n for n in self.grid.student if n not in self.students]
        if unknown:
            raise ValueError(f"grid.student = {unknown[0]!r}: no such student; there are {', '.join(self.students)}")
        recorded = list(self.data.source.responders)
        asked = [self.teacher.model] if self.teacher else []
        for teacher in [t for arms in self.arms for t in arms.teacher]:
            if teacher not in recorded + asked:
                known = ", ".join(recorded + asked) or "(none: add a [teacher] table)"
                raise ValueError(
                    f"arms.teacher = {teacher!r}: neither recorded with the data nor [teacher] model; there are {known}"
                )
        folder = self.teacher.prompts if self.teacher else None
        for strategy in [s for arms in self.arms for s in arms.strategy]:
            if not prompts.rewrites(prompts.load(strategy, folder=folder)):
                raise ValueError(
                    f"arms.strategy = {strategy!r}: its prompt has no {{reply}} to rewrite; choose one that rewrites"
                )
        needs = [m for arms in self.arms if not arms.teacher for m in arms.method if m != "human"]
        if needs and self.teacher is None:
            raise ValueError(
                f"arms.method = {needs[0]!r} asks a teacher: add a [teacher] table, or name recorded ones in teacher"
            )
        return self

    @property
    def student_names(self) -> tuple[str, ...]:
        return self.grid.student or tuple(self.students)

    @property
    def cells(self) -> int:
        """How many trained students the grid has."""
        arms = sum(len(a.method) * max(1, len(a.teacher)) * max(1, len(a.strategy)) for a in self.arms)
        return arms * math.prod([len(self.student_names), len(self.grid.regime), len(self.grid.seed)])


def load(path: str | Path) -> Experiment:
    """Read an experiment file. Raises ValueError naming field, value and remedy."""
    return documents.load(Experiment, path)
