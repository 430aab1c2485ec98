"""The same conversation twice: by id, or in words that differ in typing only. Conversations are kept as 64-bit keys."""

from __future__ import annotations

from collections.abc import Iterable

from empathy.records import Demonstration, Dialogue, Preference, Turn
from empathy.sources.clean import conversation_id, normalised
from empathy.splits import draw

MIN_WORDS = 4
"""Shorter texts ("hi", "hello there") occur twice by chance."""


def talk_key(dialogue_id: str) -> int:
    """Equal for all turns of one conversation."""
    return draw("talk", conversation_id(dialogue_id))


def text_key(text: str | None) -> int | None:
    """Equal for texts that differ in typing only; None for one too short to tell."""
    words = normalised(text or "")
    return draw("text", words) if words.count(" ") >= MIN_WORDS - 1 else None


def said_key(messages: Iterable[Turn]) -> int | None:
    """`text_key` of all that was said; a system message is not."""
    return text_key("\n".join(turn.content for turn in messages if turn.role != "system"))


class Held:
    """Test dialogues, which must not be trained on."""

    def __init__(self, test_dialogues: Iterable[Dialogue]):
        self._talks: set[int] = set()
        self._said: set[int | None] = set()
        for dialogue in test_dialogues:
            self._talks.add(talk_key(dialogue.id))
            self._said |= {said_key(dialogue.turns)} - {None}

    def has_talk(self, dialogue_id: str) -> bool:
        """Whether the dialogue is a turn of a conversation that is tested."""
        return talk_key(dialogue_id) in self._talks

    def has_said(self, messages: Iterable[Turn]) -> bool:
        """Whether a tested dialogue has these words."""
        return bool(self._said) and said_key(messages) in self._said


def leaks(train_examples: Iterable[Demonstration | Preference], held: Held) -> list[str]:
    """Ids of the dialogues behind training examples that are tested, by conversation or in the same words."""
    return sorted({e.dialogue_id for e in train_examples if held.has_talk(e.dialogue_id) or held.has_said(e.messages)})


class Excluded:
    """Dialogues that must not appear: by conversation, or by the same situation or first words."""

    def __init__(self, dialogues: Iterable[Dialogue]):
        self._talks: set[int] = set()
        self._texts: set[int | None] = set()
        for dialogue in dialogues:
            self._talks.add(talk_key(dialogue.id))
            self._texts |= _opening(dialogue)

    def reason(self, dialogue: Dialogue) -> str | None:
        """Why the dialogue is excluded, or None."""
        if talk_key(dialogue.id) in self._talks:
            return "excluded_id"
        return None if self._texts.isdisjoint(_opening(dialogue)) else "excluded_text"


def _opening(dialogue: Dialogue) -> set[int | None]:
    first = next(turn.content for turn in dialogue.turns if turn.role == "user")
    return {text_key(dialogue.situation), text_key(first)} - {None}
