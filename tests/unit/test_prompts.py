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


BUDGET = "about 28 words on average, and 97 words at most"
ASK = "Rewrite the reply so that it is more empathetic. Keep its meaning, its intention and its emotion."
DIMENSIONS = ("cognitive", "affective", "compassionate")
ANSWERING = {
    "direct",
    "empathizing_before_generation.answer",
    *(f"chain_of_empathy.{lens}" for lens in ("cbt", "dbt", "pct", "rt")),
}


def definitions() -> dict[str, str]:
    """The line "- ... empathy: ..." of each dimension, as all_three has it."""
    lines = [x for x in prompts.load("all_three")[0].splitlines() if x.startswith("- ")]
    return dict(zip(DIMENSIONS, lines, strict=True))


def wordings(name: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    while True:
        try:
            found.append(prompts.load(name, wording=len(found)))
        except ValueError:
            return found


def test_every_shipped_strategy_loads_and_says_the_word_budget() -> None:
    for name in set(prompts.names()) - {"combined"}:
        for turns in wordings(name):
            assert "{dialogue}" in turns[0]
            assert prompts.rewrites(turns) == (name not in ANSWERING)
            for turn in turns:
                assert (BUDGET in turn) == ("Do not reply yet." not in turn)
    assert {n for n in prompts.names() if n != "combined" and len(wordings(n)) > 1} == {"naive", *DIMENSIONS}


@pytest.mark.parametrize(
    ("name", "spoken_of"),
    [("naive", ()), *((d, (d,)) for d in DIMENSIONS), ("all_three", DIMENSIONS), ("lacking", DIMENSIONS)],
)
def test_a_strategy_is_the_naive_instruction_with_the_definitions_it_needs(
    name: str, spoken_of: tuple[str, ...]
) -> None:
    (turn,) = prompts.load(name)
    naive_head, naive_tail = prompts.load("naive")[0].split(ASK)
    assert turn.startswith(naive_head + ASK)
    assert turn.endswith(naive_tail.strip() + "\n")
    for dimension, line in definitions().items():
        assert (line.rstrip(".") in turn) == (dimension in spoken_of)
        assert (dimension in turn.lower()) == (dimension in spoken_of)


def test_sequential_is_a_chat_of_three_turns_one_dimension_each() -> None:
    turns = prompts.load("sequential")
    assert len(turns) == 3
    for turn, dimension in zip(turns, DIMENSIONS, strict=True):
        assert definitions()[dimension].rstrip(".") in turn
        assert not any(other in turn.lower() for other in DIMENSIONS if other != dimension)
        assert "Keep its meaning, its intention and its emotion." in turn
    assert ["{reply}" in turn for turn in turns] == [True, False, False]


def test_combined_is_the_union_of_the_three_dimensions() -> None:
    assert prompts.parts("combined") == DIMENSIONS
    assert prompts.parts("naive") == ("naive",)
    with pytest.raises(ValueError, match="a union has no wordings; there are cognitive, affective, compassionate"):
        prompts.load("combined")


def test_the_lenses_of_chain_of_empathy_differ_in_the_reasoning_alone() -> None:
    lenses = {lens: prompts.load(f"chain_of_empathy.{lens}") for lens in ("cbt", "dbt", "pct", "rt")}
    assert len({turns[0] for turns in lenses.values()}) == 4
    assert len({turns[1:] for turns in lenses.values()}) == 1
    for step in ("1. Emotion:", "2. Cause:", "3. Strategy:"):
        assert all(step in turns[0] for turns in lenses.values())


def test_a_family_is_one_file(tmp_path: Path) -> None:
    text = """name = "tone"
[variants.warm]
how = "warmly"
[variants.brief]
how = "briefly {reply}"
[[wordings]]
turns = ["{dialogue} say it {how}"]
"""
    folder = write(tmp_path, "tone", text)
    assert prompts.load("tone.warm", folder=folder) == ("{dialogue} say it warmly",)
    assert prompts.load("tone.brief", folder=folder) == ("{dialogue} say it briefly {reply}",)
    for name in ("tone", "tone.", "tone.cold", "naive.warm"):
        with pytest.raises(ValueError, match=rf"strategy = '{name}': unknown.* tone\.brief, tone\.warm$"):
            prompts.load(name, folder=folder)


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
    with pytest.raises(
        ValueError,
        match=r"strategy = 'niave': unknown, did you mean 'naive'\? There are affective, all_three, .*, naive, seq",
    ):
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
        ('name = "mine"\nwordings = []', "give one or several"),
        ('name = "mine"\nunion = ["naive"]', "two or more"),
        ('name = "mine"\nunion = ["naive", "lacking"]\n[[wordings]]\nturns = ["{dialogue}"]', "not both"),
        ('name = "mine"\n[variants.a]\nx = "1"\n[[wordings]]\nturns = ["{dialogue} {y}"]', r"\{y\}.*\{reply\}, \{x\}"),
        ('name = "mine"\n[variants.a]\nreply = "1"\n[[wordings]]\nturns = ["{dialogue}"]', r"\{reply\} is filled in"),
        ('name = "mine"\nword = 1\n[[wordings]]\nturns = ["{dialogue}"]', "word"),
        ('name = "mine"\nwordings = 3', r"wordings = 3: must be a list"),
        ('name = "mine"\n[[wordings]]\nturns = "{dialogue}"', r"wordings\.0\.turns = '\{dialogue\}': must be a list"),
        ('name = "mine"\n[variants]\na = "x"', r"variants\.a = 'x': must be a table"),
        ("name = ", "Invalid value"),
        ("x = " + "[" * 5000, "too many brackets"),
        ("", "name: is missing; add it"),
    ],
)
def test_a_file_that_is_no_strategy_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "mine", text)
    with pytest.raises(ValueError, match=r"strategy = 'mine': .*mine\.toml") as caught:
        prompts.load("mine", folder=tmp_path)
    assert caught.match(message)
    assert "pydantic" not in str(caught.value)


def test_what_editors_and_file_managers_leave_is_no_strategy_and_no_fault(tmp_path: Path) -> None:
    folder = write(tmp_path, "mine", '\ufeffname = "mine"\r\n[[wordings]]\r\nturns = ["""\r\n{dialogue}\r\nyes"""]\r\n')
    write(folder, "._mine", "\0")
    (folder / "backup.toml").mkdir()
    assert prompts.load("mine", folder=folder) == ("{dialogue}\nyes",), "the same text, and key, as from any editor"
    assert set(prompts.names(folder)) == {*prompts.names(), "mine"}


def test_a_dot_in_a_name_would_be_a_variants(tmp_path: Path) -> None:
    write(tmp_path, "a.b", 'name = "a.b"\n[[wordings]]\nturns = ["{dialogue}"]\n')
    with pytest.raises(ValueError, match=r"a\.b\.toml has a dot in its name.*rename it to a_b\.toml"):
        prompts.load("a.b", folder=tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.prompts = .*no/such.*there is no such folder"):
        prompts.load("naive", folder=tmp_path / "no/such")
