"""Why a reply is not learned from: named tests of a reply's text. Each is a function of the reply and its dialogue.

`NAMES` is the registry. Screens are for what a model wrote; a person's reply is never screened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from empathy.records import Dialogue
from empathy.sources.clean import normalised

MAX_WORDS = 97
"""The paper's word budget: the longest human reply that was rated."""
_COPIED_WORDS = 6
"""A shorter turn ("I am so sad") may well come back in a good reply."""
_DASHES = str.maketrans("’‘", "''")
_ENDS_INSIDE = re.compile(r"[\w,;:(/&-]$|(?<!\.)\.\.$")
_REFUSAL = re.compile(
    r"^((i'm|i am|i) )?((very|so|really) )?(sorry|apologi[sz]e)?[,. ]*(but )?"
    r"(i|we)( can't| cannot| can not| won't| will not|( am|'m)( unable| not able) to) "
    r"(help|assist|provide|comply|fulfil|fulfill|answer|respond|continue|engage|rewrite|write|do that|create)\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^\W*(here('s| is| are)\b[^.!?\n]{0,60}:"
    r"|((the|an?|my|more|improved|rewritten|revised|new|empathetic|empathic|better|final) )*"
    r"(reply|response|answer|rewrite|version)\W*:"
    r"|(listener|speaker|assistant|user)\W*:)",
    re.IGNORECASE,
)
_AI = re.compile(
    r"\b(as|i'm|i am|being|just)( only| just)? an? (\w+ ){0,2}?"
    r"(ai|a\.i\.|artificial intelligence|language model|chat ?bot|virtual assistant|bot)\b"
    r"|\b(ai|large) language model\b",
    re.IGNORECASE,
)


def _empty(text: str, dialogue: Dialogue) -> bool:
    return not normalised(text)


def _cut_off(text: str, dialogue: Dialogue) -> bool:
    return bool(_ENDS_INSIDE.search(text))


def _refusal(text: str, dialogue: Dialogue) -> bool:
    return bool(_REFUSAL.search(text))


def _too_long(text: str, dialogue: Dialogue) -> bool:
    return len(text.split()) > MAX_WORDS


def _copies_input(text: str, dialogue: Dialogue) -> bool:
    """The reply is a turn or the situation, or contains a turn whole."""
    reply = f" {normalised(text)} "
    said = [normalised(t) for t in (*(turn.content for turn in dialogue.turns), dialogue.situation or "")]
    return any(
        reply == f" {words} " or (words.count(" ") >= _COPIED_WORDS - 1 and f" {words} " in reply)
        for words in said
        if words
    )


def _echoes_label(text: str, dialogue: Dialogue) -> bool:
    return bool(_LABEL.search(text))


def _names_itself_ai(text: str, dialogue: Dialogue) -> bool:
    return bool(_AI.search(text))


_SCREENS: dict[str, Callable[[str, Dialogue], bool]] = {
    "empty": _empty,
    "cut_off": _cut_off,
    "refusal": _refusal,
    "too_long": _too_long,
    "copies_input": _copies_input,
    "echoes_label": _echoes_label,
    "names_itself_ai": _names_itself_ai,
}
NAMES: tuple[str, ...] = tuple(_SCREENS)


def screen(text: str, dialogue: Dialogue, names: Iterable[str]) -> str | None:
    """The first of the named screens that catches the reply, or None. Raises ValueError for a name that does not
    exist."""
    plain = text.strip().translate(_DASHES)
    for name in names:
        if name not in _SCREENS:
            raise ValueError(f"screens: {name!r} is unknown; there are {', '.join(NAMES)}")
        if _SCREENS[name](plain, dialogue):
            return name
    return None
