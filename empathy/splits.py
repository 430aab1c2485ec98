"""Which side of a split a dialogue is on: by its id or group and a seed, never by what other dialogues there are."""

from __future__ import annotations

import hashlib

from empathy.records import GOOD, Dialogue, Split
from empathy.sources.clean import conversation_id
from empathy.specs import GroupSplit, OfficialSplit, PaperSplit, RandomSplit

AnySplit = PaperSplit | RandomSplit | GroupSplit | OfficialSplit


def side(split: AnySplit, dialogue: Dialogue) -> Split:
    """The side of the split this dialogue is on, whatever other dialogues there are."""
    if isinstance(split, PaperSplit):
        return "test" if sum(rating == GOOD for rating in dialogue.ratings.values()) < 2 else "train"
    if isinstance(split, OfficialSplit):
        return dialogue.split
    # Turns of one conversation stay together in a random split too: each contains the replies before it.
    unit = dialogue.group if isinstance(split, GroupSplit) else conversation_id(dialogue.id)
    position = draw("split", split.seed, unit) / 2**64
    if position < split.test_fraction:
        return "test"
    return "valid" if position < split.test_fraction + split.valid_fraction else "train"


def draw(*what: str | int) -> int:
    """A uniform integer below 2**64 that hangs on `what` alone: blake2b over its texts, which a NUL parts."""
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, what)).encode(), digest_size=8).digest(), "big")
