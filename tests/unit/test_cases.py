"""The table that examples are chosen from."""

from __future__ import annotations

import polars as pl
from polars.testing import assert_frame_equal

from empathy import cases
from empathy.columns import to_table
from empathy.records import Dialogue, Turn

TURNS = (Turn("user", "My dog died."), Turn("assistant", "Oh no."), Turn("user", "Yesterday."))
DIALOGUES = [
    Dialogue("1", "g", TURNS, "test", "a loss", "sad", "I am sorry.", {"human": 3, "gpt": 1}, {"gpt": "Ok.", "a": "é"}),
    Dialogue("2", "h", TURNS[:1], ratings={"z": 2, "a": 1}),
    Dialogue("3", "h", TURNS[:1], human_reply=""),
]


def test_dialogues_that_are_in_no_store_are_shown_as_the_store_would() -> None:
    for some in (DIALOGUES, DIALOGUES[2:], []):
        ours = cases.table(some)
        assert_frame_equal(ours, pl.DataFrame(pl.from_arrow(to_table(some, Dialogue))).select(ours.columns))
    assert set(ours.columns) == {"id", "group", "turns", "split", "situation", "human_reply", "ratings", "recorded"}
