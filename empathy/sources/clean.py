"""What a sound row is: `clean` makes one, or says why it cannot."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from dataclasses import dataclass

from empathy.records import BAD, GOOD, Dialogue, Turn

MAX_TURN_CHARACTERS = 20_000
MAX_TURNS = 512
_SURROGATE = re.compile("[\ud800-\udfff]")
_LATER_TURN = re.compile(r"#turn\d+$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Bad:
    """A row that is no dialogue: `reason` is counted, `where` and `detail` are for people, `rows` is how many it
    may have cost."""

    reason: str
    where: str
    detail: str = ""
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


def clean(dialogue: Dialogue, where: str = "") -> Dialogue | Bad:
    """The dialogue in NFC with outer blanks and carriage returns removed, or why it cannot be used."""
    tidy = dataclasses.replace(
        dialogue,
        id=dialogue.id.strip(),
        turns=tuple(Turn(t.role, _tidy(t.content)) for t in dialogue.turns),
        situation=_tidy(dialogue.situation or "") or None,
        human_reply=_tidy(dialogue.human_reply or "") or None,
        recorded={name: text for name, raw in dialogue.recorded.items() if (text := _tidy(raw))},
    )
    reason = _fault(tidy)
    return Bad(reason, where or f"dialogue {tidy.id!r}") if reason else tidy


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def _fault(dialogue: Dialogue) -> str | None:
    texts = [t.content for t in dialogue.turns]
    others = [dialogue.id, dialogue.group, dialogue.situation, dialogue.emotion, dialogue.human_reply]
    names = [*dialogue.ratings, *dialogue.recorded]
    everything = [*texts, *(t for t in others if t), *names, *dialogue.recorded.values()]
    if not dialogue.id:
        return "no_id"
    if any(_SURROGATE.search(t) for t in everything):
        return "not_unicode"  # a lone surrogate; a byte that is not UTF-8 is read as one
    if any("\0" in t for t in everything):
        return "nul"
    if any(len(t) > MAX_TURN_CHARACTERS for t in everything):
        return "long_turn"
    if len(texts) > MAX_TURNS:
        return "many_turns"
    if not all(texts):
        return "empty_turn"
    if not _alternates([t.role for t in dialogue.turns]):
        return "role_order"
    if any(rating not in range(BAD, GOOD + 1) for rating in dialogue.ratings.values()):
        return "rating"
    return None


def _alternates(roles: list[str]) -> bool:
    """An optional system turn, then user and assistant in turn, from user to user."""
    chat = roles[1:] if roles[:1] == ["system"] else roles
    return len(chat) % 2 == 1 and chat == ["user", "assistant"] * (len(chat) // 2) + ["user"]


def conversation_id(dialogue_id: str) -> str:
    """The conversation a dialogue was cut from: ids of later turns end in "#turn2", "#turn3", ..."""
    return _LATER_TURN.sub("", dialogue_id)


def normalised(text: str) -> str:
    """Lower-case words without punctuation: equal for texts that differ in typing only."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
