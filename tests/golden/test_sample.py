"""The demo dialogues that ship in the package keep the shape and balance that their README promises."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "empathy" / "sources" / "sample" / "dialogues.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]

EMOTIONS = [
    "afraid",
    "angry",
    "annoyed",
    "anticipating",
    "anxious",
    "apprehensive",
    "ashamed",
    "caring",
    "confident",
    "content",
    "devastated",
    "disappointed",
    "disgusted",
    "embarrassed",
    "excited",
    "faithful",
    "furious",
    "grateful",
    "guilty",
    "hopeful",
    "impressed",
    "jealous",
    "joyful",
    "lonely",
    "nostalgic",
    "prepared",
    "proud",
    "sad",
    "sentimental",
    "surprised",
    "terrified",
    "trusting",
]


def rating(row: dict[str, Any]) -> int:
    return int(row["ratings"]["human"])


def words(text: str) -> int:
    return len(text.split())


def contents(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["turns"]]


def texts(row: dict[str, Any]) -> Iterator[str]:
    yield row["situation"]
    yield row["human_reply"]
    yield from contents(row)


def jaccard(a: str, b: str) -> float:
    A, B = (set(re.findall(r"[a-z0-9']+", text.lower())) for text in (a, b))
    return len(A & B) / len(A | B)


def test_jaccard_by_hand() -> None:
    assert jaccard("I am so sorry.", "so sorry, I was") == 3 / 5


def test_every_row_has_exactly_the_fields() -> None:
    for row in ROWS:
        assert list(row) == ["id", "group", "emotion", "situation", "turns", "human_reply", "ratings"]
        assert list(row["ratings"]) == ["human"]
        assert all(list(turn) == ["role", "content"] for turn in row["turns"])


def test_ids_count_up() -> None:
    assert [row["id"] for row in ROWS] == [f"sample-{number:04d}" for number in range(1, 201)]


def test_six_or_seven_dialogues_an_emotion() -> None:
    counts = Counter(row["emotion"] for row in ROWS)
    assert sorted(counts) == EMOTIONS
    assert len(EMOTIONS) == 32
    assert set(counts.values()) == {6, 7}


def test_emotions_are_interleaved() -> None:
    """The first 32 rows hold every emotion once, so that a short prefix is a fair sample; no emotion follows itself."""
    assert sorted(row["emotion"] for row in ROWS[:32]) == EMOTIONS
    assert all(a["emotion"] != b["emotion"] for a, b in pairwise(ROWS))


def test_ratings_are_mixed_as_the_readme_says() -> None:
    assert Counter(map(rating, ROWS)) == {3: 100, 2: 64, 1: 36}


def test_every_emotion_has_good_and_worse_replies() -> None:
    good = {row["emotion"] for row in ROWS if rating(row) == 3}
    worse = {row["emotion"] for row in ROWS if rating(row) < 3}
    assert good == worse == set(EMOTIONS)


def test_length_does_not_give_the_rating_away() -> None:
    """Some Good replies are shorter than some Bad ones: no threshold on words separates them."""
    good = [words(row["human_reply"]) for row in ROWS if rating(row) == 3]
    bad = [words(row["human_reply"]) for row in ROWS if rating(row) == 1]
    assert sum(count < 25 for count in good) >= 15
    assert sum(count > 30 for count in bad) >= 8


def test_twenty_groups_of_ten_not_aligned_with_emotion() -> None:
    groups = Counter(row["group"] for row in ROWS)
    assert groups == {f"g{number:02d}": 10 for number in range(1, 21)}
    for group in groups:
        assert len({row["emotion"] for row in ROWS if row["group"] == group}) >= 6


def test_roles_alternate_and_the_user_speaks_last() -> None:
    for row in ROWS:
        assert [turn["role"] for turn in row["turns"]] in (["user"], ["user", "assistant", "user"])
    assert sum(len(row["turns"]) == 3 for row in ROWS) == 32


def test_word_limits() -> None:
    for row in ROWS:
        assert 6 <= words(row["human_reply"]) <= 45  # far below the 97 of the prompts
        assert 5 <= words(row["situation"]) <= 25
        assert all(8 <= words(text) <= 40 for text in contents(row)), row["id"]


def test_situations_are_one_sentence_in_the_first_person() -> None:
    for row in ROWS:
        assert re.search(r"\b(I|me|my|we|us|our)\b", row["situation"], re.IGNORECASE), row["situation"]
        assert re.fullmatch(r"[A-Z][^.!?]*\.", row["situation"]), row["situation"]


def test_texts_are_plain() -> None:
    for text in (text for row in ROWS for text in texts(row)):
        assert text.isascii()
        assert unicodedata.is_normalized("NFC", text)
        assert text == " ".join(text.split())


@pytest.mark.parametrize("field", ["situation", "human_reply"])
def test_no_two_are_near_duplicates(field: str) -> None:
    closest = max(combinations((row[field] for row in ROWS), 2), key=lambda pair: jaccard(*pair))
    assert jaccard(*closest) < 0.5, closest


def test_no_two_utterances_of_users_are_near_duplicates() -> None:
    utterances = [turn["content"] for row in ROWS for turn in row["turns"] if turn["role"] == "user"]
    closest = max(combinations(utterances, 2), key=lambda pair: jaccard(*pair))
    assert jaccard(*closest) < 0.5, closest


def test_the_file_is_small_and_ends_with_a_newline() -> None:
    raw = PATH.read_bytes()
    assert len(raw) < 1_000_000
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw
