"""Distillation methods: which dialogues they learn from, and whose replies.

A method is one small module with the three functions of `Method` and one line in `METHODS`. It says what it wants in
polars expressions over the columns of `empathy.methods.case`: ten dialogues or ten million, nothing is done row by row.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import polars as pl

from empathy.methods import direct, human, improve_human, improve_llm
from empathy.methods.case import Objective, Purpose, Said, Who
from empathy.specs import Direct, Human, ImproveHuman, ImproveLlm

__all__ = ["METHODS", "Method", "Said", "Who", "method_of"]


class Method(Protocol):
    """`spec` is the method's own part of an examples spec (`empathy.specs`)."""

    def selects(self, spec: Any, objective: Objective, purpose: Purpose) -> pl.Expr:
        """Whether a dialogue belongs to the set; null where that hangs on a reply or a rating that is not there."""

    def teaches(self, spec: Any, purpose: Purpose) -> tuple[Said, ...]:
        """The replies that SFT learns from, one example each."""

    def pair(self, spec: Any) -> tuple[Said, Said]:
        """Chosen and rejected for DPO. Raises ValueError when the method has no pairs."""


METHODS: dict[type, Method] = {
    Direct: cast(Method, direct),
    ImproveHuman: cast(Method, improve_human),
    ImproveLlm: cast(Method, improve_llm),
    Human: cast(Method, human),
}


def method_of(spec: object) -> Method:
    """The method that a spec speaks of."""
    return METHODS[type(spec)]
