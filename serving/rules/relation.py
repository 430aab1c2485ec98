"""Whether a reply answers this case or some other: shared words, topics, persons and feelings."""

from __future__ import annotations

import re
from collections.abc import Set

from serving.rules.feelings import BY_NAME, feelings_in, words_of
from serving.rules.teacher import content_words
from serving.rules.topics import topics_in


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


PERSONS = {
    "he": _set(
        "he him his himself boyfriend husband dad father brother son grandfather grandpa uncle nephew boy man guy"
    ),
    "she": _set(
        "she her hers herself girlfriend wife mom mum mother sister daughter grandmother grandma aunt niece girl woman"
    ),
    "they": _set("they them their theirs"),
}  # fmt: skip
_SAYS_NOTHING = _set(
    "feel feeling feelings felt feels hard good great hear hope hoping hoped sound sounds sorry understand "
    "well nice best better right sure bad thank thanks okay tell talk help need wish keep try let take see "
    "look come came put way people someone everyone something everything nothing anything happen happened "
    "happens done big little new bit never always ever lot quite whole first last next long let's that's "
    "you're must being through been difficult tough imagine really remember normal natural important "
    "completely wonderful happy exciting excited experience situation times moment amazing support journey "
    "proud glad care sometimes especially might seem seems able find"
)
_ENDING = re.compile(r"(?:'s|n't|ing|ed|es|s|ly|er|ies|y)$")


def matter(text: str) -> frozenset[str]:
    """The first letters of the words that say what a text is about: "graduated" and "graduation" are one."""
    stems = (_ENDING.sub("", w) for w in content_words(text) if w not in _SAYS_NOTHING and not w.endswith("n't"))
    return frozenset(stem[:5] for stem in stems)


def persons(text: str) -> Set[str]:
    """Which of PERSONS a text speaks of."""
    words = set(words_of(text))
    return {person for person, of in PERSONS.items() if words & of}


def valence(text: str) -> float:
    """Pleasant feelings minus unpleasant ones, -1 to 1; 0 when there are none."""
    found = feelings_in(text)
    total = found.total()
    return sum(n if BY_NAME[name].pleasant else -n for name, n in found.items()) / total if total else 0.0


def relation(case: str, reply: str) -> float:
    """About the log-odds that `reply` answers `case` and not another; 0 for one that would fit any.

    The weights are those of a logistic regression, rounded: replies that people rated Good against replies to other
    dialogues (Welivita and Pu 2024, the first half; on the second half 94 in 100 are told apart).
    """
    theirs, ours = matter(case), matter(reply)
    topics, named = topics_in(case), topics_in(reply)
    feelings, shown = set(feelings_in(case)), set(feelings_in(reply))
    who, whom = persons(case), persons(reply)
    nothing = not (theirs & ours or topics & named or who & whom)
    return (
        -1.5 * nothing
        + 2.3 * min(len(theirs & ours), 3)
        - 0.12 * len(ours - theirs)
        + 1.3 * min(len(topics & named), 2)
        - 0.7 * min(len(named - topics), 2)
        + 1.4 * bool(who & whom)
        - 1.7 * bool(whom - who - {"they"})
        + 0.8 * bool(feelings & shown)
        - 0.4 * bool(shown and not feelings)
        + 0.3 * (valence(case) * valence(reply) > 0.2)
    )
