"""What is done to every reply, of every arm alike, before it is judged."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_ROLES = r"(?:speaker|listener|user|human|assistant|system|ai|bot|person [ab12])"
_HEADING = r"#{2,} ?(?:user|human|assistant|instruction|response)\b"
_TAGS = rf"(?:<\|[^|\n]{{1,40}}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|{_HEADING})"
_OWN_LABEL = re.compile(rf"\A(?:\s|{_TAGS})*(?:(?:listener|assistant|ai|bot|response|reply)\s*:\s*)?", re.IGNORECASE)
_NEXT_TURN = re.compile(
    rf"{_TAGS}|^[ \t]*\W?{_ROLES}[ \t]*:|(?<=[.!?])[ \t]+(?:Speaker|Listener|User|Human|Assistant):", re.I | re.M
)
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|\Z)")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Treated:
    """A reply as judges see it. `words` counts `text`, `raw_words` what came in; the flags say what was done."""

    text: str
    words: int
    raw_words: int
    echo_cut: bool = False
    turns_cut: bool = False
    capped: bool = False

    @property
    def empty(self) -> bool:
        return not self.text


def count_words(text: str) -> int:
    """Whitespace-separated words."""
    return len(_WORD.findall(text))


def _cap(text: str, cap_words: int) -> str:
    """`text`, at most `cap_words` words, ending on a sentence end where it has one."""
    words = list(_WORD.finditer(text))
    if len(words) <= cap_words:
        return text
    head = text[: words[cap_words - 1].end()]
    ends = [m.end() for m in _SENTENCE_END.finditer(head)]
    return head[: ends[-1]] if ends else head


def treat(text: str, cap_words: int, prompt: str = "") -> Treated:
    """`text` in NFC without prompt echo, role labels and invented next turns, capped at `cap_words` on a sentence end.

    `prompt` is the speaker's last turn: a reply that opens by repeating it word for word loses the repetition.
    """
    raw = unicodedata.normalize("NFC", text)
    body = raw[_OWN_LABEL.match(raw).end() :]  # type: ignore[union-attr]  # the pattern matches the empty string
    echo = unicodedata.normalize("NFC", prompt).strip()
    echo_cut = bool(echo) and count_words(echo) > 3 and body.startswith(echo)
    if echo_cut:
        body = body[len(echo) :]
        body = body[_OWN_LABEL.match(body).end() :]  # type: ignore[union-attr]
    next_turn = _NEXT_TURN.search(body)
    kept = (body[: next_turn.start()] if next_turn else body).strip()
    final = _cap(kept, cap_words)
    return Treated(final, count_words(final), count_words(raw), echo_cut, next_turn is not None, final != kept)
