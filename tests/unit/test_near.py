"""Near-duplicates are those of the definition, compared one by one; how replies are cut into parts changes nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from empathy.near import ALIKE, near_duplicates, sketches
from empathy.records import Dialogue
from empathy.sources import Sample
from empathy.twins import reply_numbers

REPLIES = [d.human_reply or "" for d in Sample().rows() if isinstance(d, Dialogue)]


def numbers(dialogues: Sequence[int]) -> np.ndarray:
    """Of the replies to these dialogues, several to one being its samples."""
    samples = [list(dialogues[:k]).count(d) for k, d in enumerate(dialogues)]
    return reply_numbers(pl.Series(dialogues, dtype=pl.UInt32), pl.Series(samples))


def caught(texts: Sequence[str | None], dialogues: Sequence[int] = (), parts: int = 1) -> list[int]:
    """Places of the replies that are found, from so many parts, the last first."""
    own = numbers(dialogues or range(len(texts)))
    cuts = np.array_split(np.arange(len(texts)), parts)
    found = near_duplicates(
        sketches(pl.Series([texts[k] for k in cut], dtype=pl.String), own[cut]) for cut in reversed(cuts)
    )
    return np.flatnonzero(found.among(own)).tolist()


def jaccard(a: str, b: str) -> float:
    """By its definition, on pairs of words that follow each other."""
    one, other = ({*pairwise(re.findall(r"\w+", text.lower()))} for text in (a, b))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize(
    ("first", "second", "similarity", "alike"),
    [
        # 9 words with "I" and "m", 8 pairs, all but the last in common: 7 of 9
        ("I'm so sorry to hear about your dog.", "I'm so sorry to hear about your cat!", 7 / 9, True),
        ("Oh no, what happened then?", "Oh no! What happened next?", 3 / 5, True),
        # 9 words, one in the middle: 6 pairs of 8 in common, 10 in all
        ("It must be so hard to lose a dog", "It must be very hard to lose a dog", 6 / 10, True),
        # 8 words, one in the middle: 5 of 9
        ("It must be so hard to lose dogs", "It must be very hard to lose dogs", 5 / 9, False),
        ("That must have hurt.", "That must have stung.", 2 / 4, False),
        ("You are not alone in this", "This is not you alone", 0, False),
        ("no no no no no", "no no no no no no no no", 1, True),  # a set: a pair counts once
        ("Wie schön für dich, Jürgen!", "wie SCHÖN für dich – jürgen", 1, True),
        ("Oh no!", "oh no", 1, False),  # three words are too few to tell
    ],
)
def test_alike_by_hand(first: str, second: str, similarity: float, alike: bool) -> None:
    assert jaccard(first, second) == pytest.approx(similarity)
    assert caught([first, "Something else was said here, and at length.", second]) == ([2] if alike else [])
    assert caught([second, first], parts=2) == ([1] if alike else [])


def test_whatever_is_found_about_the_earlier_one() -> None:
    """B is like A, and C like B alone: both go."""
    a = "I am so glad that you told me all of it today"
    b = "I am so glad that you told me all of that today"
    c = "I am very glad that you told me all of that today"
    assert jaccard(a, b) > ALIKE > jaccard(a, c)
    assert jaccard(b, c) > ALIKE
    assert caught([a, b, c]) == [1, 2]
    assert caught([a, c]) == []


def test_samples_of_one_dialogue_do_not_repeat_each_other() -> None:
    said = "I am so glad that you told me all of it today"
    like = said.replace("all", "some")
    assert caught([said, said, like, said, None, "", like], [3, 3, 3, 7, 8, 9, 9]) == [3, 6]
    assert caught([like, said, said], [3, 7, 7]) == [1, 2]


def changed(text: str, times: int, rng: random.Random) -> str:
    words = text.split()
    for k in rng.sample(range(len(words)), min(times, len(words))):
        words[k] = rng.choice(("kite", "amber", "willow", "seven", "harbour", "I", "you"))
    return " ".join(words)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_what_comparing_all_with_all_finds(seed: int) -> None:
    """400 replies, half of them others with one to six words changed, some dialogues with two samples. At the threshold
    one pair in a hundred may be missed, above 0.7 one in thousands."""
    rng = random.Random(seed)
    texts = rng.sample(REPLIES, 200)
    texts += [changed(rng.choice(texts), rng.randint(1, 6), rng) for _ in range(200)]
    rng.shuffle(texts)
    dialogues = sorted(rng.choices(range(350), k=400))
    nearest = [
        max((jaccard(texts[j], text) for j in range(k) if dialogues[j] < dialogues[k]), default=0.0)
        for k, text in enumerate(texts)
    ]
    found = caught(texts, dialogues)
    assert all(nearest[k] >= ALIKE for k in found)
    assert {k for k in range(400) if nearest[k] >= 0.7} <= set(found)
    assert 60 < sum(similarity >= ALIKE for similarity in nearest) <= len(found) + 2
    assert all(caught(texts, dialogues, parts) == found for parts in (2, 7, 50))


def test_what_all_share_makes_none_alike() -> None:
    """4,000 replies with 12 of 24 words in common share a key with hundreds of others; the ten that repeat one but for
    a word are found among them, and nothing else."""
    rng = random.Random(0)
    names = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "ti") for b in range(40)]
    own = [" ".join(rng.choices(names, k=12)) for _ in range(4000)]
    texts = [f"I am so sorry to hear {text} and I am here for you" for text in own]
    for k in range(10):
        texts[3000 + 7 * k] = texts[200 * k].replace("sorry", "sad")
    assert 0.2 < jaccard(texts[0], texts[1]) < 0.4
    assert caught(texts, parts=5) == [3000 + 7 * k for k in range(10)]


def test_nothing_to_compare() -> None:
    assert caught([]) == []
    assert caught(["Oh no!", None], parts=2) == []
