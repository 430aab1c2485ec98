"""Why a reply is not learned from: named tests of many replies at once.

A screen is a function of a table with one row a reply, and one line in `_SCREENS`. The columns: `text`, the reply
without outer blanks and with straight apostrophes; `turns` and `situation` of its dialogue; `repeats`, whether an
earlier dialogue has this reply too, or one much like it (`empathy.near`). It returns true where the reply is caught.
Screens are for what a model wrote; a person's reply is never screened. What models are known to say is in
`empathy.phrases`. A change of what a shipped screen catches raises `ExamplesSpec.revision`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from empathy import phrases
from empathy.words import instead

if TYPE_CHECKING:  # slow to load, and planning needs the names alone
    import polars as pl

NEAR_DUPLICATE = "near_duplicate"
MAX_WORDS = 97
"""The paper's word budget: the longest human reply that was rated."""
_COPIED_WORDS = 6
"""A shorter turn ("I am so sad") may well come back in a good reply."""
_TOO_LONG = rf"^\s*(\S+\s+){{{MAX_WORDS}}}\S"
"""One word more. Ten times as quick as to count them: a short text cannot match and is not read."""


def _empty(replies: pl.DataFrame) -> pl.Series:
    return ~replies["text"].str.contains(phrases.LETTER)


def _cut_off(replies: pl.DataFrame) -> pl.Series:
    return replies["text"].str.contains(phrases.CUT_OFF) & ~replies["text"].str.contains(phrases.FACE)


def _refusal(replies: pl.DataFrame) -> pl.Series:
    return replies["text"].str.contains(phrases.REFUSAL) | replies["text"].str.contains(phrases.OUR_RULES)


def _too_long(replies: pl.DataFrame) -> pl.Series:
    return replies["text"].str.contains(_TOO_LONG)


def _copies_input(replies: pl.DataFrame) -> pl.Series:
    """The reply is a turn or the situation, or contains a turn whole."""
    import polars as pl

    from empathy.texts import words

    contents = pl.col("turns").list.eval(pl.element().struct.field("content"))
    rows = replies.select(
        said=pl.concat_list(contents, "situation"), reply=" " + words(replies["text"].fill_null("")) + " "
    )
    pairs = rows.with_row_index("row").explode("said").drop_nulls()
    pairs = pairs.with_columns(said=" " + words(pairs["said"]) + " ")
    pairs = pairs.filter(pl.col("reply").str.contains(pl.col("said"), literal=True) & (pl.col("said") != "  "))
    long = pl.col("said").str.count_matches(" ", literal=True) > _COPIED_WORDS
    copied = pairs.filter((pl.col("reply") == pl.col("said")) | long)["row"]
    return pl.int_range(len(replies), eager=True).is_in(copied.unique().implode())


def _echoes_label(replies: pl.DataFrame) -> pl.Series:
    return replies["text"].str.contains(phrases.LABEL)


def _names_itself_ai(replies: pl.DataFrame) -> pl.Series:
    return replies["text"].str.contains(phrases.AI)


def _near_duplicate(replies: pl.DataFrame) -> pl.Series:
    """The reply of an earlier dialogue in nearly the same words: Jaccard similarity of the pairs of words that follow
    each other 0.6 or more, or no difference but in typing (case, punctuation, blanks).

    Earlier is: before it in the order of the dialogues that the method selects, whatever this or another screen says of
    it. So of A, B, C, where B is like A and C like B alone, A is kept; and no two that are kept are found to be alike.
    Replies of less than `empathy.twins.MIN_WORDS` words ("Oh no!") are no duplicates. The initial replies of method 3
    are not looked at: they are no examples to become like.
    """
    return replies["repeats"]


_SCREENS: dict[str, Callable[[pl.DataFrame], pl.Series]] = {
    "empty": _empty,
    "cut_off": _cut_off,
    "refusal": _refusal,
    "too_long": _too_long,
    "copies_input": _copies_input,
    "echoes_label": _echoes_label,
    "names_itself_ai": _names_itself_ai,
    NEAR_DUPLICATE: _near_duplicate,
}
NAMES: tuple[str, ...] = tuple(_SCREENS)


def screened(replies: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    """For each reply the first of the named screens that catches it, or null; null texts are not caught.

    `replies` has the columns text, turns, situation, repeats. Raises ValueError for a name that does not exist.
    """
    import polars as pl

    unknown = [name for name in names if name not in _SCREENS]
    if unknown:
        raise ValueError(f"screens: {unknown[0]!r} is unknown{instead(unknown[0], NAMES)}")
    tidy = pl.col("text").str.strip_chars().str.replace_all("[’‘]", "'")
    rows = replies.with_columns(tidy)
    caught = [pl.when(_SCREENS[name](rows).fill_null(False)).then(pl.lit(name)) for name in names]
    return pl.select(pl.coalesce(pl.lit(pl.Series([None] * len(rows), dtype=pl.String)), *caught)).to_series()
