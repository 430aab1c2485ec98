"""Strategies are files; filling them in cannot be upset by what people say."""

from __future__ import annotations

from pathlib import Path

import pytest

from empathy import prompts
from empathy.records import Dialogue, Turn


def dialogue(*contents: str) -> Dialogue:
    roles = ("user", "assistant") * len(contents)
    return Dialogue("d", "g", tuple(Turn(r, c) for r, c in zip(roles, contents, strict=False)))  # type: ignore[arg-type]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / f"{name}.toml").write_text(text)
    return folder


def test_every_shipped_strategy_loads_and_says_the_word_budget() -> None:
    names = prompts.names()
    assert {"direct", "naive", "all_three"} <= set(names)
    for name in names:
        turns = prompts.load(name)
        assert "{dialogue}" in turns[0]
        assert ("{reply}" in turns[0]) == (name != "direct")
        assert "about 28 words on average, and 97 words at most" in turns[-1]


def test_all_three_is_naive_with_definitions() -> None:
    naive, all_three = prompts.load("naive")[0], prompts.load("all_three")[0]
    for dimension in ("Cognitive", "Affective", "Compassionate"):
        assert f"{dimension} empathy:" in all_three
        assert dimension not in naive
    instruction = "Keep its meaning, its intention and its emotion."
    assert instruction in naive
    assert instruction in all_three


def test_fill_renders_the_dialogue_and_the_reply() -> None:
    said = dialogue("I lost my dog.\nSpeaker: he was old", "Oh no.", "Yes")
    assert prompts.fill("A\n{dialogue}\nReply: {reply}\nB", said, "I am\n sorry") == (
        "A\nSpeaker: I lost my dog. Speaker: he was old\nListener: Oh no.\nSpeaker: Yes\nReply: I am sorry\nB"
    )


def test_braces_in_what_people_say_stay() -> None:
    assert (
        prompts.fill("{dialogue} | {reply}", dialogue("{reply} {x} {"), "{dialogue}")
        == "Speaker: {reply} {x} { | {dialogue}"
    )


def test_an_unknown_strategy_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match="strategy = 'niave': unknown; there are all_three, direct, naive"):
        prompts.load("niave")


def test_an_unknown_wording_says_how_many_there_are(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        "mine",
        'name = "mine"\n[[wordings]]\nturns = ["{dialogue} a"]\n[[wordings]]\nturns = ["{dialogue} b"]\n',
    )
    assert prompts.load("mine", wording=1, folder=folder) == ("{dialogue} b",)
    for wording in (2, -1):
        with pytest.raises(ValueError, match=f"wording = {wording}: strategy 'mine' has wordings 0 to 1"):
            prompts.load("mine", wording=wording, folder=folder)


def test_a_users_folder_adds_and_replaces(tmp_path: Path) -> None:
    folder = write(tmp_path, "steps", 'name = "steps"\n[[wordings]]\nturns = ["{dialogue} {reply}", "again"]\n')
    write(folder, "naive", 'name = "naive"\n[[wordings]]\nturns = ["mine {dialogue}"]\n')
    assert prompts.load("steps", folder=folder) == ("{dialogue} {reply}", "again")
    assert prompts.load("naive", folder=str(folder)) == ("mine {dialogue}",)
    assert prompts.load("naive") != ("mine {dialogue}",)
    assert set(prompts.names(folder)) == {*prompts.names(), "steps"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "mine"\n[[wordings]]\nturns = ["{dialog}"]', r"\{dialog\} is no placeholder; there are \{dialogue\}"),
        ('name = "mine"\n[[wordings]]\nturns = ["{reply}"]', r"the first turn must contain \{dialogue\}"),
        ('name = "other"\n[[wordings]]\nturns = ["{dialogue}"]', "says name = 'other'; file and name must agree"),
        ('name = "mine"\nwordings = []', "at least 1 item"),
        ('name = "mine"\nword = 1\n[[wordings]]\nturns = ["{dialogue}"]', "word"),
        ("name = ", "Invalid value"),
    ],
)
def test_a_file_that_is_no_strategy_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "mine", text)
    with pytest.raises(ValueError, match=r"strategy = 'mine': .*mine\.toml") as caught:
        prompts.load("mine", folder=tmp_path)
    assert caught.match(message)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.prompts = .*no/such.*there is no such folder"):
        prompts.load("naive", folder=tmp_path / "no/such")
