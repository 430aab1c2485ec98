"""The embedded teacher: an empathetic reply by rules. It reflects a detail, names and shares the feeling, and offers
help or asks.

It reads a chat, or a prompt with lines "Speaker: ..." / "Listener: ..." and, to improve a reply, a line that begins
"Reply:".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from empathy.records import Turn
from serving.rules.feelings import Feeling, feeling_of_word, main_feeling, words_of

NAME = "rule-teacher-1"
"""Its model name, revision included: replies are kept in ledgers under it, so raise the number with every change of
these rules or of `feelings`."""

_SPEAKER = re.compile(r"^[ \t>*\"]*(?:speaker|user|person)[ \t]*:[ \t]*(.+)$", re.IGNORECASE | re.MULTILINE)
_REPLY = re.compile(
    r"^[ \t>*\"]*(?:the )?(?:listener's )?(?:reply|response)(?: to (?:improve|rewrite))?"
    r"[ \t]*:[ \t]*(.+(?:\n(?!\s*\n).+)*)",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSES = re.compile(r"[.!?;\n]+|,? (?:but|and then|so that|because|although) |, (?=(?:i|my|we|and) )", re.IGNORECASE)
_FLIP = {
    "i": "you", "i'm": "you're", "i've": "you've", "i'd": "you'd", "i'll": "you'll", "im": "you're", "ive": "you've",
    "me": "you",
    "my": "your", "mine": "yours", "myself": "yourself", "we": "you", "we're": "you're", "we've": "you've",
    "we'd": "you'd",
    "we'll": "you'll", "our": "your", "ours": "yours", "us": "you", "ourselves": "yourselves",
}  # fmt: skip
_AFTER_I = {"am": "are", "was": "were", "wasn't": "weren't"}
_LEADS = re.compile(
    r"^(?:(?:and|so|well|but|oh|yes|yeah|hi|hey|also|then|anyway|basically|honestly|hello|lol|ok|okay)\b[ ,]*)+",
    re.IGNORECASE,
)


def _word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COMMON = _word_set(
    "a an the and or but if so to of in on at for with from by as is are was were be been being am do did does done "
    "have has had it its this that these those there here then than when while what which who whom how why i you he "
    "she they we me him her them us my your his their our not no yes just very really too also can could will would "
    "should may might must about into over after before again all any some more most much many one two out up off "
    "get got go went going im i'm it's don't know think like want said say even because still ever never always now "
    "today yesterday time day days week year years thing things lot bit back make made"
)
_OPEN = _word_set(
    "a an the and or but if so to of in on at for with from by as is are was were my our i this that than"
)
OFFERS = (
    "I am here if you want to talk about it.",
    "If it would help, tell me more, I am glad to listen.",
    "Is there anything I can do to make this a little easier for you?",
    "Please be gentle with yourself, and let me know what would help.",
    "I am here for you, take all the time you need.",
)
QUESTIONS_GLAD = (
    "What part of it means the most to you?",
    "I would love to hear more, how are you going to celebrate?",
    "You deserve this, who will you share it with?",
    "I hope you enjoy every bit of it, what comes next?",
)
OPENINGS = ("It sounds like {clause}, and that must be {named}.", "I hear that {clause}, which sounds {named}.",
            "You are telling me that {clause}, I can imagine that this is {named}.")  # fmt: skip


def content_words(text: str) -> list[str]:
    """Words that carry the matter, in order, each once."""
    return list(dict.fromkeys(w for w in words_of(text) if len(w) > 2 and w not in _COMMON))


def understood(messages: Sequence[Turn]) -> tuple[str, str | None, str]:
    """(what the speaker says, the reply to improve or None, the instruction of the last turn)."""
    said = [s for m in messages if m.role == "user" for s in _SPEAKER.findall(m.content)]
    last = messages[-1].content
    shown = _REPLY.findall(last)  # what the last turn shows comes before what was said earlier
    earlier = [m.content for m in messages if m.role == "assistant"]
    if not said:  # a plain chat
        return last, None, ""
    reply = shown[-1] if shown else earlier[-1] if earlier else None
    return said[-1], reply.strip().strip('"') if reply else None, last


def choose(options: Sequence[str], *salt: str) -> str:
    """The same option for the same text in every process."""
    return options[int.from_bytes(hashlib.sha256("/".join(salt).encode()).digest()[:4]) % len(options)]


def flipped(clause: str) -> str:
    """Said to the speaker: "my dog died" -> "your dog died", "I was sad" -> "you were sad"."""
    out: list[str] = []
    previous = ""
    for token in clause.split():
        bare = token.lower().replace("’", "'").strip(',:"()')
        word = _AFTER_I.get(bare, "") if previous in ("i", "and i") else ""
        word = word or _FLIP.get(bare, "")
        out.append(token if not word else word + token[len(token.rstrip(',:"()')) :])
        previous = bare
    return " ".join(out)


def _shortened(clause: str, limit_words: int = 14) -> str:
    """At most `limit_words` words, not ending on one that needs another after it."""
    words = clause.split()[:limit_words]
    while len(words) > 3 and words[-1].lower().strip(",") in _OPEN:
        words.pop()
    return " ".join(words)


def detail(said: str) -> str | None:
    """The clause of the speaker that says most, turned to the speaker, at most 14 words; None when there is none worth
    it."""
    clauses = [_LEADS.sub("", c.strip(" ,-\"'")) for c in _CLAUSES.split(said)]
    best, best_score = None, 1.0
    for clause in clauses:
        words = words_of(clause)
        if not len(words) >= 3 or "you" in words or "your" in words:
            continue
        clause = _shortened(clause)
        score = len(content_words(clause)) + 1.5 * bool({"i", "my", "we", "i'm", "our"} & set(words))
        score += sum(feeling_of_word(w) is not None for w in words) - 0.3 * max(0, len(words) - 14)
        if score > best_score:
            best, best_score = clause, score
    if best is None:
        return None
    turned = flipped(best)
    return turned if re.match(r"[A-Z][a-z]+ (?:[A-Z]|is|was)", turned) else turned[0].lower() + turned[1:]


def cognitive(said: str, feeling: Feeling) -> str:
    """Names the matter and what it means."""
    named, clause = choose(feeling.named, said, "named"), detail(said)
    if clause is None:
        matter = " and ".join(content_words(said)[:2])
        return f"That about {matter} sounds {named}." if matter else f"That sounds {named}."
    if named.startswith("like"):
        return f"I hear that {clause}, and to me it sounds {named}."
    return choose(OPENINGS, said, "opening").format(clause=clause, named=named)


def affective(said: str, feeling: Feeling) -> str:
    return choose(feeling.shared, said, "shared")


def compassionate(said: str, feeling: Feeling) -> str:
    return choose(QUESTIONS_GLAD if feeling.pleasant else OFFERS, said, "offer")


ANSWER = ("cognitive", "compassionate")
"""A first answer leaves the sharing of the feeling to be improved on, as plain answers do."""
NAIVE = ("affective", "compassionate")
"""What an instruction to improve adds when it names no dimension."""
DIMENSIONS = {"cognitive": cognitive, "affective": affective, "compassionate": compassionate}


def wished(instruction: str) -> Sequence[str]:
    """The dimensions that an instruction to rewrite speaks of; all three when it asks for what is lacking."""
    if re.search(r"\black", instruction, re.IGNORECASE):
        return list(DIMENSIONS)
    return [d for d in DIMENSIONS if re.search(rf"\b{d}\b", instruction, re.IGNORECASE)] or NAIVE


def kept(reply: str, limit_words: int = 30) -> str:
    """The first sentences of the reply to improve: its meaning and intention stay."""
    sentences, out = re.findall(r"[^.!?]+[.!?]*", reply.strip()), ""
    for sentence in sentences:
        if out and len((out + sentence).split()) > limit_words:
            break
        out = f"{out} {sentence.strip()}".strip()
    return out if out.endswith((".", "!", "?")) else f"{out}."


def rewrite(said: str, reply: str, dimensions: Sequence[str]) -> str:
    """`reply`, with the wished dimensions added where it lacks them."""
    feeling, body = main_feeling(said), kept(reply)
    front = [DIMENSIONS[d](said, feeling) for d in dimensions if d != "compassionate"]
    back = [compassionate(said, feeling)] if "compassionate" in dimensions else []
    new = dict.fromkeys(s for s in (*front, body, *back) if s == body or s not in body)
    return " ".join(new)


def reply(messages: Sequence[Turn]) -> str:
    """The reply to the speaker's last turn, or the improved reply where one is given to improve."""
    said, to_improve, instruction = understood(messages)
    if to_improve:
        return rewrite(said, to_improve, wished(instruction))
    feeling = main_feeling(said)
    return " ".join(DIMENSIONS[d](said, feeling) for d in ANSWER)
