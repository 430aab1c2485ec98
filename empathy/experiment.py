"""The experiment file: a question in TOML. `empathy.lower` turns it into stages.

What is here is typed and closed: a misspelt field, an unknown strategy or a missing source is refused when the file
is read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from empathy import documents, prompts, screens
from empathy.sources import Source
from empathy.specs import (
    Full,
    GroupSplit,
    Lora,
    OfficialSplit,
    Optimiser,
    PaperSplit,
    RandomBase,
    RandomSplit,
    SplitSpec,
)

Regime = Literal["sft", "dpo", "sft+dpo"]
Method = Literal["direct", "improve_human", "improve_llm", "human"]
METHODS_THAT_REWRITE = ("improve_human", "improve_llm")
_SPLITS = {"paper": PaperSplit, "random": RandomSplit, "group": GroupSplit, "official": OfficialSplit}


HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What the attention of vLLM 0.29 on CPUs takes."""


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _split(value: Any) -> Any:
    """`split = "paper"` is short for `split = { type = "paper" }`."""
    return {"type": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """A single value is short for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


SplitField = Annotated[SplitSpec, BeforeValidator(_split)]


class Data(Section):
    """Which dialogues, and which of them are the test."""

    source: Source
    split: SplitField
    limit: int | None = Field(None, ge=1)
    part_rows: int = Field(256, ge=1)
    seed: int = 0
    screens: tuple[str, ...] = ()
    """Names of `empathy.screens` that drop a reply from training; () keeps all."""
    max_dropped: float = Field(0.2, ge=0, le=1)

    @field_validator("screens")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [n for n in names if n not in screens.NAMES]
        if unknown:
            raise ValueError(f"unknown screen {unknown[0]!r}; there are {', '.join(screens.NAMES)}")
        return names


class Teacher(Section):
    """The model that is asked where replies are not recorded with the data."""

    provider: str = "openai"
    model: str
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(200, ge=1)
    seed: int | None = None
    prompts: str | None = None
    """A folder of TOML files that adds to or replaces the strategies of the package."""
    wording: int = Field(0, ge=0)
    unrated_is_good: bool = False
    """Method direct without ratings of the teacher's replies: take them all as Good."""


class Raise(Section):
    """How a random base learns to speak: full SFT on human replies.

    On the train side of a `source` of its own, from which the experiment's dialogues are taken out; without one, on the
    experiment's own training dialogues.
    """

    source: Source | None = None
    split: SplitField = RandomSplit(test_fraction=0.0)
    limit: int | None = Field(None, ge=1)
    optimiser: Optimiser


class StudentModel(Section):
    """A Hugging Face name or folder (`model`), or a small one made from nothing (`init = "random"`, `size`,
    `raise`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    model: str | None = None
    revision: str | None = None
    init: Literal["random"] | None = None
    size: RandomBase = RandomBase()
    raised: Raise | None = Field(None, alias="raise")
    template: str = "plain"
    """A template of the package by name, or a path of a Jinja file; "own" keeps the one that the model brings."""

    @model_validator(mode="after")
    def _one_of(self) -> StudentModel:
        if (self.model is None) == (self.init is None):
            raise ValueError('give either model = "NAME OR FOLDER" or init = "random", not both and not neither')
        if self.init == "random" and self.raised is None:
            raise ValueError("init = 'random' needs a table `raise` that says which dialogues teach it to speak")
        width, odd = divmod(self.size.hidden, self.size.heads)
        if odd or width not in HEAD_WIDTHS:
            raise ValueError(
                f"size.hidden = {self.size.hidden} over size.heads = {self.size.heads}: a head must be one of "
                f"{', '.join(map(str, HEAD_WIDTHS))} wide, or vLLM cannot serve the student"
            )
        if self.model is not None and self.raised is not None:
            raise ValueError("raise belongs to init = 'random'; a model that can speak is not raised")
        return self


class DpoOptimiser(Optimiser):
    """AdamW and the strength of the pull toward the reference."""

    beta: float = Field(0.1, gt=0)


class Train(Section):
    """Both steps. `tuning` chooses LoRA (with `lora`) or all weights."""

    tuning: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    sft: Optimiser = Optimiser(learning_rate=5e-5)
    dpo: DpoOptimiser = DpoOptimiser(learning_rate=5e-5)
    max_length_tokens: int = Field(1024, ge=8)
    precision: Literal["bf16", "fp32"] = "bf16"
    both_replies: bool = True
    """SFT on the human (method 3: initial) and the learned reply, or on the learned one alone."""
    rejected: Literal["initial", "human"] = "initial"
    """Method 3's rejected reply: the paper's text, or its code."""

    @property
    def how(self) -> Lora | Full:
        return self.lora if self.tuning == "lora" else Full()


class Generate(Section):
    """How students and bases answer the test dialogues."""

    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(128, ge=1)
    seed: int = 0
    system: str | None = None
    """Put before every student prompt, in training and in answering alike. The paper has none."""


class Judging(Section):
    """Who compares replies, and against whom."""

    provider: str = "openai"
    models: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(min_length=1)
    mode: Literal["robust", "paper"] = "robust"
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(700, ge=16)
    repeats: int = Field(1, ge=1)
    attempts: int = Field(3, ge=1, le=3)
    cap_words: int = Field(97, ge=1)
    opponents: tuple[Literal["base", "human", "teacher"], ...] = ("base", "human", "teacher")


class Arms(Section):
    """Some arms: the product of its lists. `teacher` names responders recorded with the data, or the `[teacher]`
    model."""

    method: Annotated[tuple[Method, ...], BeforeValidator(_listed)]
    teacher: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    strategy: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _strategies(self) -> Arms:
        rewriting = [m for m in self.method if m in METHODS_THAT_REWRITE]
        if rewriting and not self.strategy:
            raise ValueError(f"method {rewriting[0]!r} rewrites replies and needs strategy = [...]")
        if self.strategy and len(rewriting) < len(self.method):
            raise ValueError(
                "strategy goes with improve_human and improve_llm; put other methods into [[arms]] of their own"
            )
        return self


class Grid(Section):
    """Every arm is made for each of these."""

    student: tuple[str, ...] = ()
    """Names of [students.NAME]; () means all of them."""
    regime: tuple[Regime, ...] = ("sft", "dpo", "sft+dpo")
    seed: tuple[int, ...] = (0,)


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
