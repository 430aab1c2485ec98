"""Whole columns are treated as their texts are one by one, and keys of near-duplicates are kept in little room."""

from __future__ import annotations

import pickle

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as some

from empathy.records import Demonstration, Dialogue, Turn, content_id
from empathy.sources.clean import normalised
from empathy.splits import draw
from empathy.texts import as_json, content_ids, draws, turns_as_json, words
from empathy.twins import (
    Held,
    Keys,
    said_key,
    said_keys,
    talk_key,
    talk_keys,
    text_key,
    text_keys,
)

ODD = some.sampled_from(
    ['He said "no"', "a\\b", "I’m “fine”… – really", "tab\tnew\nline", "ẞtraße ﬁn", "❤\ufe0f", "\x7f", ""]
)
TEXT = ODD | some.text(some.characters(exclude_categories=["Cs"]), max_size=40)
TURN = some.builds(Turn, some.sampled_from(["system", "user", "assistant"]), TEXT)


@settings(max_examples=200, deadline=None)
@given(some.lists(TEXT, min_size=1, max_size=6))
def test_columns_are_treated_as_their_texts(found: list[str]) -> None:
    column = pl.Series(found)
    assert words(column).to_list() == [normalised(text) for text in found]
    assert draws("what\0 7", column).tolist() == [draw("what", " 7", text) for text in found]
    ids = content_ids("[" + as_json(column) + ",1]")
    assert ids.to_list() == [content_id(text, 1) for text in found]
    assert text_keys(column).tolist() == [text_key(text) or 0 for text in found]
    assert talk_keys(column + "#turn12").tolist() == [talk_key(text) for text in found]


@settings(max_examples=100, deadline=None)
@given(some.lists(some.lists(TURN, min_size=1, max_size=4), min_size=1, max_size=4))
def test_turns_too(found: list[list[Turn]]) -> None:
    column = pl.Series([[turn.as_message() for turn in turns] for turns in found])
    ids = content_ids("[" + turns_as_json(column) + "," + as_json(pl.Series(["oh"] * len(found))) + "]")
    dialogue = Dialogue("d", "g", ())
    assert ids.to_list() == [Demonstration.of(dialogue, tuple(turns), "oh", "human").id for turns in found]
    assert said_keys(column).tolist() == [said_key(turns) or 0 for turns in found]


def test_keys_are_a_set() -> None:
    keys = Keys([7, 2**64 - 1, 7, 3])
    assert len(keys) == 3
    assert [key in keys for key in (3, 7, 2**64 - 1, 2, 8, None)] == [True, True, True, False, False, False]
    assert keys.among(np.array([8, 7, 2**64 - 1], dtype=np.uint64)).tolist() == [False, True, True]
    again = pickle.loads(pickle.dumps(keys))
    assert 7 in again
    assert 8 not in again
    assert not Keys()
    assert 3 not in Keys()
    assert Keys().among(np.array([3], dtype=np.uint64)).tolist() == [False]


def test_nothing_is_held_of_no_dialogues() -> None:
    assert not Held.of().has_talk("d1")
    assert not Held.of().has_said((Turn("user", "one two three four"),))
