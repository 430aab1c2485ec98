"""Which cases a method selects, and why some of these give no example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from empathy.cases import joined, rated
from empathy.methods import Said
from empathy.records import HUMAN
from empathy.screens import screened
from empathy.specs import ExamplesSpec
from empathy.stages import LastingError
from empathy.twins import Keys, reply_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_HUMAN, UNRATED, EQUAL = "no_human_reply", "unrated", "chosen_is_rejected"
_UNRATED = pl.col("wanted").is_null() & pl.col("human").is_not_null()


class Choice:
    """What an examples spec asks of every case; `said` is whose replies an example shows.

    Raises ValueError when the method has no pairs and the objective wants some.
    """

    def __init__(self, spec: ExamplesSpec):
        ours: Any = spec.method
        if spec.good is not None and getattr(ours, "unrated_is_good", False):  # a judge decides, and nobody else
            ours = ours.model_copy(update={"unrated_is_good": False})
        self.said: tuple[Said, ...] = ours.teaches(spec.purpose) if spec.objective == "sft" else ours.pair()
        self._selects = ours.selects(spec.objective, spec.purpose)
        self.needs = frozenset(self._selects.meta.root_names())
        """Columns of the table of cases that the selection looks at."""
        self.screens = spec.screens if any(who == "learned" for who, _ in self.said) else ()
        self._scored, self._paired = spec.good is not None, spec.objective == "dpo"

    def candidates(self, cases: pl.DataFrame, screens: Sequence[str], repeated: Keys) -> pl.DataFrame:
        """The cases that the method selects, with the `reason` why one gives no example, null where it gives some.

        `repeated` are the numbers of replies that an earlier dialogue has too. Raises LastingError naming the first
        dialogue whose selection hangs on a rating that nobody gave; one that a judge did not give is a reason.
        """
        rows = self._wanted(cases).filter(pl.col("wanted").fill_null(True))
        reasons: list[pl.Expr] = [pl.when(_UNRATED).then(pl.lit(UNRATED))]
        reasons.append(pl.when(pl.col("wanted").is_null()).then(pl.lit(NO_HUMAN)))
        for who, _ in self.said:
            reasons.append(_missing(who))
            if who != HUMAN and screens:
                rows = rows.with_columns(_screened(rows, who, screens, repeated).alias(f"caught_{who}"))
                reasons.append(pl.col(f"caught_{who}"))
        if self._paired:
            (chosen, _), (rejected, _) = self.said
            reasons.append(pl.when(pl.col(chosen) == pl.col(rejected)).then(pl.lit(EQUAL)))
        return rows.with_columns(reason=pl.coalesce(reasons))

    def count(self, dialogues: pl.DataFrame, learned: pl.DataFrame | None, initial: pl.DataFrame | None) -> int:
        """How many of `dialogues` the method selects, before anything is dropped; for plans. The tables are those that
        `cases.joined` takes. Raises as `candidates` does."""
        rows = joined(dialogues, learned, initial)
        for who in ("human", "learned"):
            rows = rated(rows, who)
        return self.selected(rows)

    def selected(self, cases: pl.DataFrame) -> int:
        """How many cases the method selects, before anything is dropped. Raises LastingError naming the first whose
        selection hangs on a rating that nobody gave."""
        return int(self._wanted(cases)["wanted"].sum())

    def _wanted(self, cases: pl.DataFrame) -> pl.DataFrame:
        rows = cases.with_columns(wanted=self._selects)
        if not self._scored:
            _refuse(rows.filter(_UNRATED))
        return rows


def _missing(who: str) -> pl.Expr:
    """What happened to a reply that is not there."""
    none = pl.lit(f"no_{who}_reply")
    return pl.when(pl.col(who).is_null()).then(none if who == HUMAN else pl.coalesce(f"why_no_{who}", none))


def _screened(rows: pl.DataFrame, who: str, screens: Sequence[str], repeated: Keys) -> pl.Series:
    again = np.zeros(len(rows), dtype=np.bool_)
    if who == "learned" and repeated:
        again = repeated.among(reply_numbers(rows["number"], rows["sample"]))
    replies = rows.select("turns", "situation", text=who).with_columns(pl.Series("repeats", again))
    return screened(replies, screens)


def _refuse(unrated: pl.DataFrame) -> None:
    for row in unrated.head(1).iter_rows(named=True):
        who = "human" if row["human_rating"] is None else "learned"
        raise LastingError(
            f"dialogue {row['id']!r}: its {who} reply has no rating to select by; use a source with ratings "
            '(welivita_pu, or "ratings" in a jsonl), or let a judge rate (a [ratings] table in the experiment); '
            "method direct can do without: unrated_is_good = true in [teacher]"
        )
