"""[[arms]] and [grid]: what is learned, by whom."""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from empathy.experiment.data import Screens
from empathy.experiment.sections import LISTED, Section, Seed
from empathy.specs import METHODS
from empathy.words import instead

Regime = Literal["sft", "dpo", "sft+dpo"]
NAIVE = "naive"
"""The strategy that the others are compared with."""


METHOD_OPTIONS = ("both_replies", "rejected", "original", "division")
"""What [train] says of methods and arms may say otherwise."""


class Arms(Section):
    """Some arms: the product of its lists. `teacher` names responders recorded with the data, or the `[teacher]`
    model."""

    method: Annotated[tuple[str, ...], LISTED] = Field(min_length=1)
    teacher: Annotated[tuple[str, ...], LISTED] = ()
    strategy: Annotated[tuple[str, ...], LISTED] = ()
    """Prompts (`empathy.prompts`): those that rewrite for improve_human and improve_llm, those that answer for
    direct."""
    wording: Annotated[tuple[Annotated[int, Field(ge=0)], ...], LISTED] = ()
    """Which wordings of each strategy; () is the first."""
    screens: Screens | None = None
    """In place of those of [data]."""
    both_replies: Annotated[tuple[bool, ...], LISTED] = ()
    rejected: Annotated[tuple[Literal["initial", "human"], ...], LISTED] = ()
    original: Annotated[tuple[Literal["initial", "human"], ...], LISTED] = ()
    division: Annotated[tuple[Literal["ratings", "random"], ...], LISTED] = ()
    """In place of those of [train], so that readings of a method may be arms of one grid; () is what [train] says."""

    @field_validator("method")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [n for n in names if n not in METHODS]
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r}{instead(unknown[0], METHODS)}")
        return names

    @model_validator(mode="after")
    def _fit(self) -> Arms:
        rewriting = [m for m in self.method if METHODS[m].learns.startswith("rewritten")]
        if rewriting and not self.strategy:
            raise ValueError(f"method {rewriting[0]!r} rewrites replies and needs strategy = [...]")
        if self.strategy and 0 < len(rewriting) < len(self.method):
            raise ValueError(
                "strategy: one that rewrites does not answer, and one that answers does not rewrite; put direct into "
                "[[arms]] of its own"
            )
        alone = [m for m in self.method if METHODS[m].learns == "human"]
        if alone and (self.strategy or self.teacher):
            raise ValueError(f"method {alone[0]!r} has neither teacher nor strategy; put it into [[arms]] of its own")
        if self.wording and not self.strategy:
            raise ValueError(
                f"wording = {list(self.wording)}: it chooses a wording of a strategy; give strategy = [...]"
            )
        for option in self.options:
            if lacking := [m for m in self.method if option not in METHODS[m].model_fields]:
                having = ", ".join(m for m, kind in METHODS.items() if option in kind.model_fields)
                raise ValueError(
                    f"{option} = {list(getattr(self, option))}: method {lacking[0]!r} has no such option, it is for "
                    f"{having}; put that into [[arms]] of its own"
                )
        return self

    @property
    def options(self) -> dict[str, tuple[bool | str, ...]]:
        """The options of methods that these arms set, with their values."""
        return {name: values for name in METHOD_OPTIONS if (values := getattr(self, name))}

    @property
    def apart_from_strategy(self) -> set[tuple[object, ...]]:
        """What its arms are beside their strategy; no wording is the first."""
        options = ([(name, value) for value in values] for name, values in self.options.items())
        return set(product(self.method, self.teacher or (None,), self.wording or (0,), *options))

    @property
    def rewrites(self) -> bool:
        """Whether its methods improve replies."""
        return any(METHODS[m].learns.startswith("rewritten") for m in self.method)

    @property
    def asks(self) -> bool:
        """Whether the [teacher] model is needed, whatever is recorded."""
        return bool(self.strategy) or any(METHODS[m].learns == "answers" and not self.teacher for m in self.method)

    @property
    def count(self) -> int:
        """How many arms these are."""
        lists = (self.method, self.teacher, self.strategy, self.wording, *self.options.values())
        return math.prod(max(1, len(values)) for values in lists)


class Grid(Section):
    """Every arm is made for each of these."""

    student: Annotated[tuple[str, ...], LISTED] = ()
    """Names of [students.NAME]; () means all of them."""
    regime: Annotated[tuple[Regime, ...], LISTED] = Field(("sft", "dpo", "sft+dpo"), min_length=1)
    seed: Annotated[tuple[Seed, ...], LISTED] = Field((0,), min_length=1)
