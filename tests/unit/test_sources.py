"""Each source on files small enough to read here; what is wrong with a row, a file or a path is said by name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empathy import dialogues
from empathy.columns import from_table, to_table
from empathy.records import Dialogue, Turn
from empathy.sources import parse
from empathy.sources.clean import MAX_TURN_CHARACTERS, MAX_TURNS, Bad, clean, conversation_id, normalised
from empathy.specs import OfficialSplit, PaperSplit, RandomSplit
from empathy.store import Artifact, Store

SUFFIXES = ("human", "chatgpt_empathy", "llama_empathy", "gemini_empathy", "mixtral_empathy")


def wp_row(number: int, ratings: str = "33333", **more: str) -> dict[str, str]:
    row = {"part_no": str(number // 2), "dialog_id": f"hit:{number}_conv:{2 * number}", "emotion": "sad"}
    row |= {"situation": f"My dog number {number} died", "speaker_uttr": f"I lost my dog number {number} "}
    row |= {f"response_{s}": f"{s} answers {number}" for s in SUFFIXES}
    row |= {f"rating_{s}": rating for s, rating in zip(SUFFIXES, ratings, strict=True)}
    return row | more


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def line(number: int, **more: object) -> dict[str, object]:
    return {"id": f"d{number}", "turns": [{"role": "user", "content": f"my worry number {number} grows"}]} | more


def made(tmp_path: Path, config: dict[str, object], split: object = None, **options: object) -> Artifact:
    stage = dialogues.stage(parse(config), split or RandomSplit(test_fraction=0.0), **options)  # type: ignore[arg-type]
    store = Store.open(str(tmp_path / "store"))
    dialogues.make(stage, store, store.writer(stage))
    return store.get(stage)


# ---------------------------------------------------------------- welivita_pu


def test_welivita_pu_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "study2.csv", [wp_row(3, "12333", speaker_uttr=' He said "no",\nand left ')])
    (dialogue,) = parse({"type": "welivita_pu", "path": str(path)}).rows()
    assert clean(dialogue) == Dialogue(  # type: ignore[arg-type]
        id="hit:3_conv:6",
        group="1",
        turns=(Turn("user", 'He said "no",\nand left'),),
        situation="My dog number 3 died",
        emotion="sad",
        human_reply="human answers 3",
        ratings={"human": 1, "gpt-4": 2, "llama-2-70b-chat": 3, "gemini-1.0-pro": 3, "mixtral-8x7b": 3},
        recorded={
            "gpt-4": "chatgpt_empathy answers 3",
            "llama-2-70b-chat": "llama_empathy answers 3",
            "gemini-1.0-pro": "gemini_empathy answers 3",
            "mixtral-8x7b": "mixtral_empathy answers 3",
        },
    )


def test_welivita_pu_takes_the_folder_or_the_file_and_hashes_its_content(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "study2.csv", [wp_row(1)])
    by_file, by_folder = (parse({"type": "welivita_pu", "path": str(p)}) for p in (path, tmp_path))
    assert by_file.locate() == by_folder.locate() == path
    assert by_folder.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    before = by_file.digest()
    path.write_bytes(path.read_bytes() + b"\n")
    assert by_file.digest() != before


def test_welivita_pu_without_a_column_names_it(tmp_path: Path) -> None:
    row = wp_row(1)
    del row["rating_human"]
    path = write_csv(tmp_path / "study2.csv", [row])
    with pytest.raises(ValueError, match=r"study2\.csv: no column rating_human; its columns are part_no"):
        list(parse({"type": "welivita_pu", "path": str(path)}).rows())


def test_a_rating_of_four_drops_the_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "study2.csv", [wp_row(1, "34333"), wp_row(2)])
    bad, good = parse({"type": "welivita_pu", "path": str(path)}).rows()
    assert isinstance(bad, Bad)
    assert str(bad) == "study2.csv line 2: rating ('4' is not 1, 2 or 3)"
    assert isinstance(good, Dialogue)


def test_the_paper_split_drops_a_row_without_a_rating_but_others_keep_it(tmp_path: Path) -> None:
    rows = [wp_row(n) for n in range(150)] + [wp_row(150, rating_human="")]
    config = {"type": "welivita_pu", "path": str(write_csv(tmp_path / "study2.csv", rows))}
    assert made(tmp_path, config, PaperSplit()).counts == {"train": 150, "unrated": 1}
    assert made(tmp_path, config).counts == {"train": 151}


# ---------------------------------------------------------------- empathetic_dialogues


def ed_csv(rows: list[tuple[str, str, str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([("Dialog_ID", "Type", "Actor", "Text"), *rows])
    return text.getvalue().encode()


AFRAID = ed_csv(
    [
        ("c1", "situation", "none", "A fire"),
        ("c1", "utterance", "speaker", "My car burned!"),
        ("c1", "utterance", "speaker", "On the highway."),
        ("c1", "utterance", "listener", "What did you do?"),
        ("c1", "utterance", "speaker", "I jumped out."),
        ("c1", "utterance", "listener", "I am glad."),
        ("c2", "situation", "none", "Nobody answers"),
        ("c2", "utterance", "speaker", "Hello?"),
    ]
)
PROUD = ed_csv(
    [("c3", "situation", "none", "S"), ("c3", "utterance", "speaker", "I won"), ("c3", "utterance", "listener", "Yes!")]
)


@pytest.fixture
def ed(tmp_path: Path) -> Path:
    """The archive as it is published, with the official split beside it."""
    with tarfile.open(tmp_path / "ed.tar.xz", "w:xz") as archive:
        for name, data in (("afraid", AFRAID), ("proud", PROUD)):
            info = tarfile.TarInfo(f"emp/{name}.csv")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "official_split_reconstructed.json").write_text('{"valid": ["c2"], "test": ["c3"]}')
    return tmp_path


def test_empathetic_dialogues_first_exchange(ed: Path) -> None:
    first, none, proud = parse({"type": "empathetic_dialogues", "path": str(ed)}).rows()
    assert first == Dialogue(
        id="c1",
        group="c1",
        turns=(Turn("user", "My car burned!\nOn the highway."),),
        situation="A fire",
        emotion="afraid",
        human_reply="What did you do?",
    )
    assert isinstance(none, Bad)
    assert none.reason == "no_listener_turn"
    assert isinstance(proud, Dialogue)
    assert (proud.id, proud.emotion, proud.split) == ("c3", "proud", "test")


def test_empathetic_dialogues_every_exchange(ed: Path) -> None:
    rows = list(parse({"type": "empathetic_dialogues", "path": str(ed), "exchanges": "all"}).rows())
    second = rows[1]
    assert isinstance(second, Dialogue)
    assert (second.id, second.group, second.human_reply) == ("c1#turn2", "c1", "I am glad.")
    assert [t.role for t in second.turns] == ["user", "assistant", "user"]
    assert conversation_id(second.id) == "c1"


def test_empathetic_dialogues_unpacked_gives_the_same_rows(ed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked" / "emp"
    folder.mkdir(parents=True)
    (folder / "afraid.csv").write_bytes(AFRAID)
    (folder / "proud.csv").write_bytes(PROUD)
    (tmp_path / "unpacked" / "official_split_reconstructed.json").write_bytes(
        (ed / "official_split_reconstructed.json").read_bytes()
    )
    packed, unpacked, archive = (
        list(parse({"type": "empathetic_dialogues", "path": str(p)}).rows())
        for p in (ed, folder.parent, ed / "ed.tar.xz")
    )
    assert packed == unpacked == archive


def test_the_official_split_is_part_of_what_identifies_the_data(ed: Path) -> None:
    before = parse({"type": "empathetic_dialogues", "path": str(ed)}).digest()
    (ed / "official_split_reconstructed.json").write_text('{"valid": [], "test": ["c1"]}')
    assert parse({"type": "empathetic_dialogues", "path": str(ed)}).digest() != before


def test_a_bad_row_spoils_its_conversation_alone(tmp_path: Path) -> None:
    (tmp_path / "sad.csv").write_bytes(
        b"Dialog_ID,Type,Actor,Text\r\nc1,situation,none,S\r\nc1,utterance,speaker\r\nc1,utterance,listener,oh\r\n"
        b"c2,situation,none,S\r\nc2,utterance,speaker,I fell\r\nc2,utterance,listener,ouch\r\n"
    )
    bad, good = parse({"type": "empathetic_dialogues", "path": str(tmp_path)}).rows()
    assert isinstance(bad, Bad)
    assert str(bad) == "sad.csv line 3: wrong_columns (3 cells for 4 columns)"
    assert isinstance(good, Dialogue)
    assert good.id == "c2"


def test_empathetic_dialogues_without_the_official_ids_has_no_official_split(tmp_path: Path) -> None:
    (tmp_path / "proud.csv").write_bytes(PROUD)
    with pytest.raises(ValueError, match=r"official_split_reconstructed\.json"):
        dialogues.stage(parse({"type": "empathetic_dialogues", "path": str(tmp_path)}), OfficialSplit())


# ---------------------------------------------------------------- esconv


def conversation(*said: str) -> str:
    """ "u..." is said by the seeker, "s..." by the supporter."""
    turns = [{"text": text, "speaker": {"u": "usr", "s": "sys"}[text[0]]} for text in said]
    return json.dumps({"emotion_type": "anxiety", "situation": "A job", "dialog": turns}) + "\n"


@pytest.fixture
def esconv(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(conversation("s0", "u1", "u2", "s3", "s4", "u5", "s6", "u7", "s8", "u9", "s10"))
    (tmp_path / "valid.txt").write_text("")
    (tmp_path / "test.txt").write_text(conversation("u1", "s2", "u3"))
    return tmp_path


def test_esconv_starts_with_the_seeker_and_ends_before_each_supporter_turn(esconv: Path) -> None:
    rows = [r for r in parse({"type": "esconv", "path": str(esconv)}).rows() if isinstance(r, Dialogue)]
    assert [(r.id, r.split, r.human_reply) for r in rows] == [
        ("esconv-train-1#turn1", "train", "s3\ns4"),
        ("esconv-train-1#turn2", "train", "s6"),
        ("esconv-train-1#turn3", "train", "s8"),
        ("esconv-train-1#turn4", "train", "s10"),
        ("esconv-test-1#turn1", "test", "s2"),
    ]
    assert rows[1].turns == (Turn("user", "u1\nu2"), Turn("assistant", "s3\ns4"), Turn("user", "u5"))
    assert {r.group for r in rows} == {"esconv-train-1", "esconv-test-1"}


def test_esconv_options_choose_evenly_spaced_turns(esconv: Path) -> None:
    source = parse({"type": "esconv", "path": str(esconv), "max_per_conversation": 2, "min_turns": 1})
    assert [r.id for r in source.rows() if isinstance(r, Dialogue)][:2] == [
        "esconv-train-1#turn2",
        "esconv-train-1#turn4",
    ]
    later = parse({"type": "esconv", "path": str(esconv), "min_turns": 5})
    assert [r.id for r in later.rows() if isinstance(r, Dialogue)] == ["esconv-train-1#turn3", "esconv-train-1#turn4"]
    assert later.options() == {"max_per_conversation": None, "min_turns": 5}


def test_esconv_drops_an_unreadable_line(esconv: Path) -> None:
    (esconv / "valid.txt").write_text('{"dialog": [{"text": "cut')
    bad = [r for r in parse({"type": "esconv", "path": str(esconv)}).rows() if isinstance(r, Bad)]
    assert [(b.reason, b.where) for b in bad] == [("unreadable_row", "valid.txt line 1")]


# ---------------------------------------------------------------- jsonl, sample


def test_jsonl_row(tmp_path: Path) -> None:
    row = line(
        1, human_reply="I hear you", ratings={"human": 2, "m": 3}, recorded={"m": "Oh no"}, split="test", emotion="sad"
    )
    source = parse({"type": "jsonl", "path": str(write_jsonl(tmp_path / "a.jsonl", [row])), "recorded_replies": ["m"]})
    assert list(source.rows()) == [
        Dialogue(
            id="d1",
            group="d1",
            turns=(Turn("user", "my worry number 1 grows"),),
            split="test",
            emotion="sad",
            human_reply="I hear you",
            ratings={"human": 2, "m": 3},
            recorded={"m": "Oh no"},
        )
    ]
    assert source.responders == ("m",)


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ('{"id": "a", "turns": [', "unreadable_row", "Expecting value"),
        ('{"id": "a", "turns": [{"role": "user", "content": "x"}], "human_repy": "y"}', "wrong_fields", "human_repy"),
        ('{"id": "a", "turns": [{"role": "usr", "content": "x"}]}', "wrong_fields", r"turns\.0\.role"),
        ('{"id": "a", "turns": []}', "wrong_fields", "turns"),
    ],
)
def test_jsonl_bad_rows_have_a_reason(tmp_path: Path, text: str, reason: str, detail: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text + "\n")
    (bad,) = parse({"type": "jsonl", "path": str(path)}).rows()
    assert isinstance(bad, Bad)
    assert (bad.reason, bad.where) == (reason, "a.jsonl line 1")
    assert re.search(detail, bad.detail)


def test_what_is_no_unicode_drops_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(line(2)).encode()
    bad = [
        b'{"id": "d%d", "turns": [{"role": "user", "content": "%s"}]}\n' % (k, t)
        for k, t in enumerate([b"caf\xe9", b"\\ud83d"])
    ]
    path.write_bytes(b"".join(bad) + good + b"\n")
    rows = [r if isinstance(r, Bad) else clean(r) for r in parse({"type": "jsonl", "path": str(path)}).rows()]
    assert [r.reason if isinstance(r, Bad) else r.id for r in rows] == ["not_unicode", "not_unicode", "d2"]


def test_the_sample_needs_no_path_and_every_row_is_sound() -> None:
    source = parse({"type": "sample"})
    rows = [r if isinstance(r, Bad) else clean(r) for r in source.rows()]
    assert len(rows) == 200
    assert all(isinstance(r, Dialogue) and r.human_reply and r.ratings["human"] in (1, 2, 3) for r in rows)


# ---------------------------------------------------------------- clean


def dialogue(*contents: str, roles: str = "uauauauauaua", **more: object) -> Dialogue:
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = tuple(Turn(names[r], c) for r, c in zip(roles, contents, strict=False))  # type: ignore[arg-type]
    return Dialogue(**({"id": "d", "group": "g", "turns": turns} | more))  # type: ignore[arg-type]


def test_clean_normalises() -> None:
    nfd = unicodedata.normalize("NFD", "Zoë à côté")
    row = dialogue(f"  {nfd}\r\nyes \n", human_reply=" ", situation=nfd, recorded={"m": f"{nfd} ", "empty": " "})
    tidy = clean(row)
    assert isinstance(tidy, Dialogue)
    assert tidy.turns == (Turn("user", "Zoë à côté\nyes"),)
    assert (tidy.human_reply, tidy.situation, tidy.recorded) == (None, "Zoë à côté", {"m": "Zoë à côté"})


def test_clean_keeps_right_to_left_text_and_emoji() -> None:
    text = "שלום \u202bעולם\u202c 👩‍👩‍👧"
    tidy = clean(dialogue(text))
    assert isinstance(tidy, Dialogue)
    assert tidy.turns[0].content == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (dialogue("a\0b"), "nul"),
        (dialogue("half \ud83d"), "not_unicode"),
        (dialogue("fine", recorded={"m": "\udfff"}), "not_unicode"),
        (dialogue("x" * (MAX_TURN_CHARACTERS + 1)), "long_turn"),
        (dialogue(*["x"] * (MAX_TURNS + 1), roles="ua" * MAX_TURNS), "many_turns"),
        (dialogue("hello", " ", "there"), "empty_turn"),
        (dialogue("hello", "hi"), "role_order"),
        (dialogue("hello", roles="a"), "role_order"),
        (dialogue("a", "b", roles="uu"), "role_order"),
        (dialogue("a", roles="s"), "role_order"),
        (dialogue(), "role_order"),
        (dialogue("hello", id=" "), "no_id"),
        (dialogue("hello", ratings={"human": 0}), "rating"),
    ],
)
def test_clean_says_why_not(row: Dialogue, reason: str) -> None:
    bad = clean(row)
    assert isinstance(bad, Bad)
    assert bad.reason == reason


def test_a_system_turn_may_come_first() -> None:
    assert isinstance(clean(dialogue("be kind", "hello", roles="su")), Dialogue)


def test_normalised_ignores_case_punctuation_and_width() -> None:
    assert normalised("  I’m SAD… really!") == normalised("i m sad, Ｒeally")


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_cleaning_twice_changes_nothing_and_what_passes_can_be_stored(said: str, replied: str) -> None:
    tidy = clean(dialogue(said, human_reply=replied))
    if isinstance(tidy, Dialogue):
        assert clean(tidy) == tidy
        assert list(from_table(to_table([tidy], Dialogue), Dialogue)) == [tidy]


# ---------------------------------------------------------------- the file as a whole


def test_a_typo_in_the_type_lists_the_sources() -> None:
    with pytest.raises(ValueError, match="'welivita_pu', 'empathetic_dialogues', 'esconv', 'jsonl', 'sample'"):
        parse({"type": "welivita"})


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = parse({"type": "jsonl", "path": "${NO_SUCH_PLACE}/a.jsonl"})
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ValueError, match=r"data\.source\.path = .*the environment variable NO_SUCH_PLACE is not set"):
        source.locate()
    monkeypatch.setenv("NO_SUCH_PLACE", str(tmp_path))
    with pytest.raises(ValueError, match=rf"there is no {tmp_path}/a\.jsonl; give a \.jsonl file"):
        source.locate()
    write_jsonl(tmp_path / "a.jsonl", [line(1)])
    assert source.locate() == tmp_path / "a.jsonl"


def test_one_bad_row_in_a_hundred_is_dropped_and_counted_two_fail(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [line(n) for n in range(99)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, line(99, ratings={"human": 4})])
    artifact = made(tmp_path, {"type": "jsonl", "path": str(path)})
    assert artifact.rows == 99
    assert artifact.counts == {"train": 99, "rating": 1}
    assert artifact.meta["rows_read"] == 100
    write_jsonl(path, [*rows[:98], line(98, ratings={"human": 4}), line(99, turns=[])])
    with pytest.raises(
        ValueError, match=r"2 of 100 rows are no dialogues, more than 1%.*d98.*rating.*line 100: wrong_fields"
    ):
        made(tmp_path, {"type": "jsonl", "path": str(path)})


def test_a_fault_that_every_row_has_is_told_once_with_the_field_that_is_meant(tmp_path: Path) -> None:
    faulty = [line(n, reply="I am sorry.") for n in range(9)]
    path = write_jsonl(tmp_path / "a.jsonl", [*faulty, {"id": "x", "turns": [{"role": "user", "text": "private"}]}])
    with pytest.raises(ValueError, match="10 of 10 rows are no dialogues") as refused:
        made(tmp_path, {"type": "jsonl", "path": str(path)})
    said = str(refused.value)
    assert said.count("did you mean 'human_reply'?") == 1
    assert "a.jsonl line 1: wrong_fields" in said
    assert "a.jsonl line 10: wrong_fields (turns.0.content is missing, turns.0.text: no such field" in said
    assert "sorry" not in said, "what people said is in no message"
    assert "private" not in said


@pytest.mark.parametrize("rating", [True, False, "3", 2.0, 2.5, None, [3], 0, 4])
def test_a_rating_is_a_whole_number_and_nothing_that_could_be_made_one(rating: object, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [line(1), line(2, ratings={"human": rating})])
    told = (
        r"'d2': rating"
        if rating in (0, 4) and rating is not False
        else r"a\.jsonl line 2: wrong_fields.*ratings\.human"
    )
    with pytest.raises(ValueError, match=told):
        made(tmp_path, {"type": "jsonl", "path": str(path)})


def test_an_open_quote_counts_for_every_line_it_ate(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "study2.csv", [wp_row(n) for n in range(300)])
    lines = path.read_text().split("\n")
    lines[250] = lines[250].replace("I lost", '"I lost')  # the quote closes nowhere: the rest of the file is one cell
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"5\d of 300 rows are no dialogues.*line 251: unreadable_row"):
        made(tmp_path, {"type": "welivita_pu", "path": str(path)}, PaperSplit())


def test_repeated_ids_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [line(1), line(2), line(1, emotion="sad")])
    with pytest.raises(
        ValueError, match=r"1 id occurs more than once, for example d1; give each dialogue an id of its own"
    ):
        made(tmp_path, {"type": "jsonl", "path": str(path)})


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"no dialogue is left of 0 rows \(it is empty\)"):
        made(tmp_path, {"type": "jsonl", "path": str(tmp_path / "a.jsonl")})


def test_data_that_changed_since_planning_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [line(1)])
    stage = dialogues.stage(parse({"type": "jsonl", "path": str(path)}), RandomSplit())
    write_jsonl(path, [line(1), line(2)])
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="its content changed since this was planned; plan again"):
        dialogues.make(stage, store, store.writer(stage))


def test_where_the_data_lies_is_not_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    here, there = (write_jsonl(p / "a.jsonl", [line(1)]) for p in (tmp_path, tmp_path / "b"))
    keys = {dialogues.stage(parse({"type": "jsonl", "path": str(p)}), RandomSplit()).key for p in (here, there)}
    assert len(keys) == 1
