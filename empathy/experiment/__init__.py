"""The experiment file: a question in TOML. `empathy.lower` turns it into stages.

What is here is typed and closed: a misspelt field, an unknown strategy or a missing source is refused when the file
is read.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from pydantic import Field, model_validator

from empathy import documents, prompts
from empathy.experiment.arms import NAIVE, Arms, Grid, Regime
from empathy.experiment.asked import Judging, Ratings, Scoring, Teacher
from empathy.experiment.data import Data
from empathy.experiment.sections import Name, Section, Seed
from empathy.experiment.students import DpoOptimiser, Generate, Raise, StudentModel, Train
from empathy.specs import METHODS
from empathy.words import instead

__all__ = [
    "Arms",
    "Data",
    "DpoOptimiser",
    "Experiment",
    "Generate",
    "Grid",
    "Judging",
    "Raise",
    "Ratings",
    "Regime",
    "Report",
    "Scoring",
    "Section",
    "StudentModel",
    "Teacher",
    "Train",
    "load",
]


class Report(Section):
    """How the numbers are made."""

    bootstrap: int = Field(10_000, ge=100, le=1_000_000)
    seed: Seed = 0
    examples_shown: int = Field(5, ge=0, le=10_000)


class Experiment(Section):
    """The whole file."""

    name: Name
    question: str
    expect: str = ""
    differs: str = ""
    """What is not as in the paper it follows."""
    data: Data
    teacher: Teacher | None = None
    ratings: Ratings | None = None
    rubric: Scoring | None = None
    students: dict[Name, StudentModel] = Field(min_length=1)
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
            raise ValueError(f"grid.student = {unknown[0]!r}: no such student{instead(unknown[0], self.students)}")
        self._check_students()
        for arms in self.arms:
            self._check_regimes(arms)
            self._check_teachers(arms)
            self._check_strategies(arms)
        self._check_opponents()
        if self.ratings and self.teacher and self.teacher.unrated_is_good:
            raise ValueError("unrated_is_good = true beside [ratings]: the judge rates every reply; remove one of them")
        return self

    def _check_opponents(self) -> None:
        """An opponent that no arm has would be left out of the report without a word."""
        asked = self.judge.opponents if "opponents" in self.judge.model_fields_set else ()
        if "teacher" in asked and all(METHODS[m].learns == "human" for arms in self.arms for m in arms.method):
            raise ValueError(
                'judge.opponents: no arm has a teacher; remove "teacher" there, or add arms that learn of one'
            )
        if NAIVE not in asked:
            return
        naive = {kind for arms in self.arms if NAIVE in arms.strategy for kind in arms.apart_from_strategy}
        others = {kind for arms in self.arms if {*arms.strategy} - {NAIVE} for kind in arms.apart_from_strategy}
        if not naive or (others and not naive & others):
            raise ValueError(
                'judge.opponents: "naive" is the arm that differs in its strategy alone, and there is none; '
                'add strategy = "naive" beside the others (same method, teacher, wording and options), or '
                "remove the opponent"
            )

    def _check_students(self) -> None:
        for name, student in self.students.items():
            if same := [other for other in self.students if other != name and self.students[other] == student]:
                raise ValueError(
                    f"students.{name}: is the same as students.{same[0]}, and would be compared with itself; remove one"
                )
            if student.init == "random":
                self._check_positions(name, student.size.positions)

    def _check_positions(self, name: str, positions: int) -> None:
        if self.train.max_length_tokens > positions:
            raise ValueError(
                f"train.max_length_tokens = {self.train.max_length_tokens}: students.{name} has "
                f"{positions} positions (size.positions); make them as many, or train on less"
            )
        if self.generate.max_tokens >= positions:
            raise ValueError(
                f"generate.max_tokens = {self.generate.max_tokens}: students.{name} has {positions} positions "
                "(size.positions) for prompt and reply together; make them more, or the replies shorter"
            )

    def _check_regimes(self, arms: Arms) -> None:
        """People's replies alone are no pairs, so DPO learns nothing from them; regimes with DPO leave such arms out,
        which must not be all."""
        unpaired = [name for name in arms.method if METHODS[name].learns == "human"]
        if unpaired and "sft" not in self.grid.regime:
            raise ValueError(
                f"arms.method = {unpaired[0]!r}: has no pairs to learn from by DPO, and grid.regime = "
                f'{list(self.grid.regime)} has nothing else; add "sft" to grid.regime, or remove the method'
            )

    def _check_teachers(self, arms: Arms) -> None:
        recorded = list(self.data.source.responders)
        asked = [self.teacher.model] if self.teacher else []
        for teacher in arms.teacher:
            if teacher not in recorded + asked:
                known = instead(teacher, recorded + asked or ["(none: add a [teacher] table)"])
                raise ValueError(
                    f"arms.teacher = {teacher!r}: neither recorded with the data nor [teacher] model{known}"
                )
            learns = {METHODS[m].learns for m in arms.method}
            if teacher not in asked and arms.strategy and learns != {"rewritten_answers"}:
                raise ValueError(
                    f"arms.teacher = {teacher!r}: recorded replies follow no strategy; leave teacher out and the "
                    "[teacher] model is asked (with improve_llm it rewrites what was recorded)"
                )
        if arms.asks and self.teacher is None:
            raise ValueError(
                f"arms.method = {arms.method[0]!r} asks a teacher: add a [teacher] table, or name recorded ones in "
                "teacher"
            )

    def _check_strategies(self, arms: Arms) -> None:
        folder = self.teacher.prompts if self.teacher else None
        parts = {part: name for name in arms.strategy for part in prompts.parts(name, folder)}
        for part, wording in product(parts, arms.wording or (0,)):
            if prompts.rewrites(prompts.load(part, wording, folder)) != arms.rewrites:
                fault = (
                    "its prompt has no {reply} to rewrite; choose one that rewrites"
                    if arms.rewrites
                    else "its prompt rewrites a reply; with direct choose one that answers"
                )
                raise ValueError(f"arms.strategy = {parts[part]!r}: {fault}")

    @property
    def student_names(self) -> tuple[str, ...]:
        return self.grid.student or tuple(self.students)

    @property
    def cells(self) -> int:
        """How many trained students the grid has."""
        grid = len(self.student_names) * len(self.grid.regime) * len(self.grid.seed)
        return sum(arms.count for arms in self.arms) * grid


def load(path: str | Path) -> Experiment:
    """Read an experiment file. Raises ValueError naming field, value and remedy."""
    return documents.load(Experiment, path)
