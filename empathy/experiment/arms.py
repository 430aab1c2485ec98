"""[[arms]] and [grid]: what is learned, by whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from empathy.experiment.sections import LISTED, Section

Regime = Literal["sft", "dpo", "sft+dpo"]
Method = Literal["direct", "improve_human", "improve_llm", "human"]
METHODS_THAT_REWRITE = ("improve_human", "improve_llm")


class Arms(Section):
    """Some arms: the product of its lists. `teacher` names responders recorded with the data, or the `[teacher]`
    model."""

    method: Annotated[tuple[Method, ...], LISTED]
    teacher: Annotated[tuple[str, ...], LISTED] = ()
    strategy: Annotated[tuple[str, ...], LISTED] = ()

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
