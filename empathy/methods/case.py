"""One dialogue with the replies that a method speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from empathy.records import GOOD, HUMAN, Dialogue, Reply

Objective = Literal["sft", "dpo"]
Purpose = Literal["train", "heldout"]
Who = Literal["human", "learned", "initial"]
Said = tuple[Who, str]
"""Whose reply, and what an example calls its source: human, teacher, improved."""

BY_HUMAN: Said = ("human", "human")
ANSWERED: Said = ("learned", "teacher")
IMPROVED: Said = ("learned", "improved")
INITIAL: Said = ("initial", "teacher")
NO_HUMAN = "no_human_reply"


@dataclass(frozen=True)
class Case:
    """`learned` is the reply to become like, `initial` the one that it improves on."""

    dialogue: Dialogue
    learned: Reply | None = None
    initial: Reply | None = None

    def reply(self, who: Who) -> Reply | None:
        """A model's reply, dropped or not."""
        return self.learned if who == "learned" else self.initial

    def text(self, who: Who) -> str | None:
        """The words, or None where there are none to be used."""
        if who == HUMAN:
            return self.dialogue.human_reply
        reply = self.reply(who)
        return None if reply is None or reply.dropped else reply.text

    def rating(self, who: Who, unrated_is_good: bool = False) -> int:
        """1 Bad, 2 Okay, 3 Good; an unrated reply is Good if that is the user's wish. Raises ValueError naming the
        remedy otherwise."""
        found = self._rating(who)
        if found is None and not unrated_is_good:
            raise ValueError(
                f"dialogue {self.dialogue.id!r}: its {who} reply has no rating to select by; use a source with ratings "
                '(welivita_pu, or "ratings" in a jsonl); method direct can do without: unrated_is_good = true'
            )
        return GOOD if found is None else found

    def on_human_side(self, objective: Objective) -> bool | str:
        """Methods 2 and 3: SFT where the human reply is Good, DPO where it is Bad or Okay."""
        if self.dialogue.human_reply is None:
            return NO_HUMAN
        return (self.rating("human") == GOOD) == (objective == "sft")

    def _rating(self, who: Who) -> int | None:
        if who == HUMAN:
            return self.dialogue.ratings.get(HUMAN)
        reply = self.reply(who)
        # A model asked anew may carry the name of a recorded one: a rating belongs to the text that was rated.
        if reply is None or reply.text != self.dialogue.reply_of(reply.model):
            return None
        return self.dialogue.ratings.get(reply.model)
