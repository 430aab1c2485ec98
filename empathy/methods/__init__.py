"""Distillation methods: which dialogues they learn from, and whose replies.

A method is one small file with one class, and one name in the union of `empathy.specs.examples`. The fields of the
class identify the sets that it makes (those of the same name in [train] fill them in); `learns` says which replies it
needs, and three functions say the rest in polars expressions over the columns of `empathy.methods.case`: ten dialogues
or ten million, nothing is done row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from empathy.methods.case import Learns, Objective, Purpose, Said, Who

if TYPE_CHECKING:  # slow to load, and planning needs the options alone
    import polars as pl

__all__ = ["Learns", "Method", "Objective", "Purpose", "Said", "Who"]


class Method(Protocol):
    """What the class of a method says."""

    learns: ClassVar[Learns]

    def selects(self, objective: Objective, purpose: Purpose) -> pl.Expr:
        """Whether a dialogue belongs to the set; null where that hangs on a reply or a rating that is not there."""

    def teaches(self, purpose: Purpose) -> tuple[Said, ...]:
        """The replies that SFT learns from, one example each."""

    def pair(self) -> tuple[Said, Said]:
        """Chosen and rejected for DPO. Raises ValueError when the method has no pairs."""
