"""Each screen catches what it names, and lets good replies through that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest

from empathy.columns import to_table
from empathy.records import Dialogue, Turn
from empathy.screens import NAMES, screened
from empathy.sources import parse

DIALOGUE = Dialogue(
    "d",
    "g",
    (
        Turn("user", "I was let go yesterday after eleven years."),
        Turn("assistant", "Oh no."),
        Turn("user", "I am so sad"),
    ),
)


def caught(replies: list[tuple[str, Dialogue]], names: Sequence[str], repeats: bool = False) -> list[str | None]:
    dialogues = pl.DataFrame(pl.from_arrow(to_table([dialogue for _, dialogue in replies], Dialogue)))
    text = pl.Series([text for text, _ in replies], dtype=pl.String)
    table = dialogues.select("turns", "situation", text=text, repeats=pl.lit(repeats))
    return screened(table, names).to_list()


def screen(text: str, dialogue: Dialogue, names: Sequence[str]) -> str | None:
    return caught([(text, dialogue)], names)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", ""),
        ("empty", " \n"),
        ("empty", "..."),
        ("cut_off", "Eleven years is a long time, and I"),
        ("cut_off", "I hear you,"),
        ("cut_off", "There are three things:"),
        ("refusal", "I'm sorry, but I can't assist with that request."),
        ("refusal", "I’m sorry, I cannot help with this."),
        ("refusal", "I cannot provide a reply to this conversation."),
        ("refusal", "Sorry, I am not able to continue this conversation."),
        ("refusal", "I apologize, but I won't write that."),
        ("too_long", "word " * 98),
        ("copies_input", "I am so sad."),
        ("copies_input", "You said: I was let go yesterday, after eleven years. That hurts."),
        ("echoes_label", "Improved response: That must hurt."),
        ("echoes_label", "**Improved Reply:** That must hurt."),
        ("echoes_label", "Here is the rewritten reply:\nThat must hurt."),
        ("echoes_label", "Here's a more empathetic version: That must hurt."),
        ("echoes_label", "Listener: That must hurt."),
        ("echoes_label", '"Response": That must hurt.'),
        ("echoes_label", "❤\ufe0f Improved response: That must hurt."),
        ("names_itself_ai", "As an AI, I do not feel, but that must hurt."),
        ("names_itself_ai", "I'm just an AI language model."),
        ("names_itself_ai", "I am a chatbot, yet I care."),
        ("names_itself_ai", "Being a large language model I cannot hug you."),
    ],
)
def test_caught(name: str, text: str) -> None:
    assert screen(text, DIALOGUE, [name]) == name


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't imagine how hard that was.",
        "I am so sorry. I cannot begin to understand what eleven years mean to you!",
        "I can't believe they did that to you.",
        "I won't pretend to know how that feels.",
        "That must hurt so much. I am so sad for you, too.",
        "Oh no… that is hard...",
        "That must hurt 😢",
        "I am with you ❤\ufe0f",
        'My mother used to say "this too shall pass."',
        "Here's hoping that something better comes soon!",
        "Your response makes sense: anyone would be sad.",
        "The answer will come with time.",
        "Did you train as an engineer? As an aide to others you gave so much.",
        "I am a bit lost for words.",
        "word " * 96 + "end.",
    ],
)
def test_not_caught(text: str) -> None:
    assert screen(text, DIALOGUE, NAMES) is None


def test_the_first_named_screen_that_catches_is_the_reason() -> None:
    text = "As an AI, I cannot end this sentence,"
    assert screen(text, DIALOGUE, ["cut_off", "names_itself_ai"]) == "cut_off"
    assert screen(text, DIALOGUE, ["names_itself_ai", "cut_off"]) == "names_itself_ai"
    assert screen(text, DIALOGUE, []) is None


def test_an_unknown_screen_lists_those_that_exist() -> None:
    with pytest.raises(
        ValueError, match=r"'long' is unknown, did you mean 'too_long'\? There are empty, cut_off, refusal"
    ):
        screen("Fine.", DIALOGUE, ["long"])


def test_the_samples_human_replies_pass() -> None:
    rows = [d for d in parse({"type": "sample"}).rows() if isinstance(d, Dialogue)]
    replies = [(d.human_reply or "", d) for d in rows]
    assert set(caught(replies, [n for n in NAMES if n != "cut_off"])) == {None}


def test_each_reply_is_judged_by_its_own_dialogue_and_none_is_no_reply() -> None:
    other = Dialogue("e", "g", (Turn("user", "We moved to the sea in spring, all of us."),), situation="A long move.")
    told = "We moved to the sea in spring – all of us! How was it?"
    rows = [
        ("I am so sad.", DIALOGUE),
        ("I am so sad.", other),
        (told, DIALOGUE),
        (told, other),
        ("A LONG move", other),
    ]
    copied = "copies_input"
    assert caught(rows, (*NAMES[:1], copied)) == [copied, None, None, copied, copied]
    table = pl.DataFrame(
        {"text": [None], "turns": [[{"role": "user", "content": "x"}]], "situation": [None], "repeats": [True]},
        schema_overrides={"text": pl.String, "situation": pl.String},
    )
    assert screened(table, [n for n in NAMES if n != "near_duplicate"]).to_list() == [None]


def test_a_repeated_reply_is_caught() -> None:
    assert caught([("That must hurt so much.", DIALOGUE)], ["near_duplicate"], repeats=True) == ["near_duplicate"]
