"""Distillation methods: which dialogues they learn from, and whose replies.

A method is one small module with the three functions of `Method` and one line in `METHODS`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from empathy.methods import direct, human, improve_human, improve_llm
from empathy.methods.case import Case, Objective, Purpose, Said
from empathy.specs import Direct, Human, ImproveHuman, ImproveLlm

__all__ = ["METHODS", "Case", "Method", "Said", "method_of"]


class Method(Protocol):
    """`spec` is the method's own part of an examples spec (`empathy.specs`)."""

    def selects(self, spec: Any, objective: Objective, purpose: Purpose, case: Case) -> bool | str:
        """Whether the dialogue belongs to the set; a string is the reason why that cannot be told.

        Raises ValueError when it hangs on a rating that nobody gave.
        """

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
