"""The words that methods are written in: columns of a table with one row a dialogue and reply to learn.

An expression is null where it cannot be told: there is no such reply, or nobody rated it. What then becomes of the
dialogue is no method's concern (`empathy.examples`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from empathy.records import GOOD

if TYPE_CHECKING:  # slow to load, and planning needs the options of methods alone
    import polars as pl

Objective = Literal["sft", "dpo"]
Purpose = Literal["train", "heldout"]
Who = Literal["human", "learned", "initial"]
"""The person in the data; the reply to become like; the one that it improves on."""
Learns = Literal["human", "answers", "rewritten_human", "rewritten_answers"]
"""Which replies a method needs: people's alone, the teacher's answers, or what the teacher made of either."""
Said = tuple[Who, str]
"""Whose reply, and what an example calls its source: human, teacher, improved."""

BY_HUMAN: Said = ("human", "human")
ANSWERED: Said = ("learned", "teacher")
IMPROVED: Said = ("learned", "improved")
INITIAL: Said = ("initial", "teacher")


def every() -> pl.Expr:
    """True of every dialogue."""
    import polars as pl

    return pl.lit(True)


def text(who: Who) -> pl.Expr:
    """The words of a reply, null where there are none to be used."""
    import polars as pl

    return pl.col(who)


def rating(who: Literal["human", "learned"], unrated_is_good: bool = False) -> pl.Expr:
    """1 Bad, 2 Okay, 3 Good; an unrated reply is Good if that is the user's wish."""
    import polars as pl

    return pl.col(f"{who}_rating").fill_null(GOOD) if unrated_is_good else pl.col(f"{who}_rating")


def mark(who: Literal["human", "learned"], unrated_is_good: bool = False) -> pl.Expr:
    """What the rating rests on: itself where people rated, a judge's score where that decides."""
    import polars as pl

    return pl.col(f"{who}_mark").fill_null(float(GOOD)) if unrated_is_good else pl.col(f"{who}_mark")


def where_there(who: Who, told: pl.Expr) -> pl.Expr:
    """`told`, where there is such a reply."""
    import polars as pl

    return pl.when(text(who).is_not_null()).then(told)


def both(a: pl.Expr, b: pl.Expr) -> pl.Expr:
    """Whether both hold; null where either cannot be told, though the other is false."""
    import polars as pl

    return pl.when(a.is_not_null() & b.is_not_null()).then(a & b)


def on_human_side(objective: Objective) -> pl.Expr:
    """Methods 2 and 3: SFT where the human reply is Good, DPO where it is Bad or Okay."""
    return rating("human") == GOOD if objective == "sft" else rating("human") < GOOD


def drawn_for(objective: Objective) -> pl.Expr:
    """Whether the lot puts the dialogue into this set (method 3's `division = "random"`)."""
    import polars as pl

    return pl.col("drawn_for_sft") == (objective == "sft")
