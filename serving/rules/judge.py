"""The embedded judge: which of two replies shows more empathy, or how much one shows, by rules on words; both orders
give the same verdict.

Every score saturates, so that length earns nothing by itself. It answers the prompts of `empathy.judges`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from empathy.judges.shown import DIMENSIONS, Shown, read_prompt
from empathy.records import Turn
from serving.rules.feelings import feelings_in, words_of
from serving.rules.relation import matter, relation, valence

NAME = "rule-judge-1"
"""Its model name, revision included: verdicts are kept in ledgers under it, so raise the number with every change of
these rules, of `feelings` or of `teacher.content_words`."""

UNDERSTANDING = re.compile(
    r"\b(?:sounds? (?:like|so|really|very)|(?:that|it|this) must|must (?:be|feel|have)|makes? sense|no wonder"
    r"|of course you|i (?:can )?(?:see|hear|understand|imagine|get)|you (?:are|were|seem|feel|felt|must)|you're"
    r"|i know how|can't blame you)\b"
)
SHARING = re.compile(
    r"\b(?:i(?:'m| am) (?:so |very |really |truly )?"
    r"(?:sorry|sad|happy|glad|excited|proud|moved|angry|thrilled|touched|delighted)"
    r"|i feel|my heart|makes? me (?:so |feel |want |smile|sad|happy|cry|laugh|tear)"
    r"|(?:feel|happy|sorry|glad|excited|proud|sad|thrilled|rooting|cheering|hoping) (?:so |really )?(?:hard )?for you"
    r"|(?:along|feel|sit|grieve|cry|smile|right there|celebrate) with you|i would (?:be|feel)|i'd (?:be|feel)|me too"
    r"|congrat\w*|breaks my|warms)\b"
)
CARING = re.compile(
    r"\b(?:here (?:for you|if you)|here to listen|let me know|talk (?:about it|to (?:me|someone|him|her|them))"
    r"|take care|i hope|hope (?:you|it|things|that)|how can i|can i (?:do|help)|would it help|anything i can|be gentle"
    r"|deserve"
    r"|wish you|good luck|hang in|sending|hugs?|proud of you|tell me more|have you (?:tried|thought|talked|considered)"
    r"|maybe you (?:can|could)|you can (?:do|always)|happy to|glad to|i'd love)\b"
)
ASKING = re.compile(r"\b(?:you|your)\b[^.!?]*\?")
ORDERING = re.compile(
    r"\b(?:you (?:should|need to|must) (?:just|stop|get|not)|get over|stop \w+ing|calm down|your own fault|whatever"
    r"|big deal|who cares|lol)\b"
)
STEERING = re.compile(
    r"\b(?:ignore (?:all|any|the|previous)|as the judge|winner|more empathetic|overall\b.*\btie|system prompt"
    r"|other reply|this reply)\b|[{}]"
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DETERMINED = _set("a an the is are was am i you it of to and for be my your that with")
_GOVERNED = _set("to of is am are was and i for")
_ODD_AFTER = {  # words that hardly ever follow: many of them mean jumbled text
    **dict.fromkeys(("a", "an", "the", "my", "your", "his", "our"), _DETERMINED),
    **dict.fromkeys(("to", "of", "for", "with"), _GOVERNED),
    "i": _set("is are you to of a the and i'm my your"),
    "and": _set("and of or"),
    "so": frozenset({"of"}),
    "is": _set("is am are i to and"),
    "am": _set("am is are i you the"),
    "you": _set("is am was i i'm you it"),
    "it": _set("it i am are my"),
}
CLOSE, CLOSE_OVERALL = 0.05, 0.02


def soundness(text: str) -> float:
    """1 for whole, well-formed sentences; less where text is cut, jumbled or repeats itself; 0 for none."""
    words = words_of(text)
    if not words:
        return 0.0
    starts = re.findall(r"(?:\A|[.!?]\s+)[\"'(]*(\w)", text)
    lowered = sum(s.islower() for s in starts) / len(starts) if starts else 1.0
    odd = sum(b in _ODD_AFTER.get(a, ()) for a, b in pairwise(words)) / len(words)
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(triples) / max(1, triples.total())
    whole = text.rstrip().endswith((".", "!", "?", "…", '"', ")", ":)"))
    return max(0.0, 1.0 - 0.3 * min(1.0, lowered) - 5.0 * odd - 2.0 * repeated - (0.0 if whole else 0.55))


def idle_words(case: str, text: str) -> int:
    """Words in sentences that neither speak of the case nor carry any empathy."""
    about, idle = matter(case), 0
    for sentence in re.split(r"(?<=[.!?…])\s+|\n+", text):
        low = sentence.lower().replace("’", "'")
        if not (about & matter(sentence) or any(p.search(low) for p in (UNDERSTANDING, SHARING, CARING, ASKING))):
            idle += len(words_of(sentence))
    return idle


def scores(case: str, reply: str) -> dict[str, float]:
    """Each dimension from 0 to 1."""
    text = reply.lower().replace("’", "'")
    said = re.sub(r"^\w+: ", "", case, flags=re.MULTILINE)
    case_feelings, feelings = feelings_in(said), feelings_in(reply)
    understood = 0.25 * bool(UNDERSTANDING.search(text)) + 0.15 * bool(re.search(r"\byou", text))
    touched = min(len(matter(said) & matter(reply)), 3) / 3
    cognitive = 0.2 * touched + 0.4 + understood
    same = bool(set(case_feelings) & set(feelings))
    against = valence(said) * valence(reply) < -0.2
    affective = 0.4 + 0.3 * bool(SHARING.search(text)) + 0.15 * bool(feelings) + 0.15 * same - 0.4 * against
    compassion = 0.4 + 0.4 * bool(CARING.search(text)) + 0.2 * bool(ASKING.search(text))
    compassion -= 0.4 * bool(ORDERING.search(text))
    fit = 1 / (1 + math.exp(-relation(said, reply) / 2 + 0.5))  # what would fit any case is low in every dimension
    idle = min(0.6, max(0, idle_words(said, reply) - 24) / 50)
    weight = fit * (1 - idle) * soundness(reply) * (0.3 if STEERING.search(text) else 1.0)
    found = {"cognitive": cognitive, "affective": affective, "compassionate": compassion}
    return {name: max(0.0, score) * weight for name, score in found.items()}


def compare(shown: Shown) -> tuple[dict[str, str], float]:
    """(winner by dimension and "overall": a code or "tie"; mean difference of first and second)."""
    (first, first_text), (second, second_text) = shown.replies.items()
    a, b = scores(shown.case, first_text), scores(shown.case, second_text)

    def winner(difference: float, close: float) -> str:
        return "tie" if abs(difference) < close else first if difference > 0 else second

    outcomes = {d: winner(a[d] - b[d], CLOSE) for d in DIMENSIONS}
    mean = sum(a[d] - b[d] for d in DIMENSIONS) / 3
    return outcomes | {"overall": winner(mean, CLOSE_OVERALL)}, mean


def _forced(replies: Mapping[str, str], mean: float) -> str:
    """Where no tie is allowed: the sign of the difference, or a draw by the texts that does not see their order."""
    codes = list(replies)
    if mean:
        return codes[0 if mean > 0 else 1]
    return min(codes, key=lambda code: hashlib.sha256(replies[code].encode()).digest())


def reply(messages: Sequence[Turn]) -> str:
    """The answer in the format that the prompt asks for. Raises ValueError when it is no prompt of
    `empathy.judges`."""
    shown = read_prompt(messages)
    if shown.mode == "rubric":
        return _levels(shown)
    outcomes, mean = compare(shown)
    notes = f"By rules on words: the mean difference over the three dimensions is {abs(mean):.2f}."
    if shown.mode == "paper":
        return f"{notes}\nWinner: {_forced(shown.replies, mean)}"
    margin = 0 if outcomes["overall"] == "tie" else 1 + (abs(mean) > 0.2) + (abs(mean) > 0.4)
    return json.dumps({"notes": notes, **outcomes, "margin": margin})


def _levels(shown: Shown) -> str:
    """A level of 1 to 5 a dimension: its score of 0 to 1, stretched and rounded."""
    found = scores(shown.case, shown.replies[""])
    levels = {name: 1 + round(4 * min(1.0, found[name])) for name in DIMENSIONS}
    return json.dumps({"notes": "By rules on words.", **levels})
