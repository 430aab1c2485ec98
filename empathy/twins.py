"""The same conversation or the same reply twice: by id, or in words that differ in typing only.

Texts are kept as sorted 64-bit keys: ten million are 80 MB.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from empathy.records import Dialogue, Turn
from empathy.sources.clean import conversation_id, normalised
from empathy.splits import draw

if TYPE_CHECKING:  # slow to load, and planning does not need them
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    Array = NDArray[np.uint64]

MIN_WORDS = 4
"""Shorter texts ("hi", "hello there") occur twice by chance."""
NO_KEY = 0
"""In an array of keys: a text too short to tell."""
SAMPLE_BITS = 16
"""A dialogue has fewer samples than this many bits can count."""


# ---------------------------------------------------------------- keys of one text


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


# ---------------------------------------------------------------- keys of many texts


def talk_keys(ids: pl.Series) -> Array:
    """`talk_key` of each."""
    from empathy.texts import draws

    return draws("talk", ids.str.replace(r"#turn\d+$", ""))


def text_keys(texts: pl.Series) -> Array:
    """`text_key` of each, NO_KEY for None."""
    import numpy as np

    from empathy.texts import draws, words

    found = words(texts.fill_null(""))
    long = (found.str.count_matches(" ", literal=True) >= MIN_WORDS - 1).to_numpy()
    keys = np.full(len(found), NO_KEY, dtype=np.uint64)
    keys[long] = draws("text", found.filter(long))
    return keys


def said_keys(turns: pl.Series) -> Array:
    """`said_key` of each list of turns, NO_KEY for None."""
    import polars as pl

    turn = pl.element().struct
    contents = turns.list.eval(turn.field("content").filter(turn.field("role") != "system"))
    return text_keys(contents.list.join("\n"))


# ---------------------------------------------------------------- sets of keys


class Keys:
    """A set of 64-bit keys: eight bytes each."""

    def __init__(self, keys: Array | Iterable[int] = ()):
        import numpy as np

        given = keys if isinstance(keys, np.ndarray) else np.frombuffer(array("Q", keys), dtype=np.uint64)
        self.__setstate__(np.unique(given[given != NO_KEY]))

    def __getstate__(self) -> Array:
        return self.sorted

    def __setstate__(self, state: Array) -> None:
        self.sorted, self._view = state, memoryview(state)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.sorted)

    def __contains__(self, key: int | None) -> bool:
        at = bisect_left(self._view, key or NO_KEY)
        return at < len(self._view) and self._view[at] == key

    def among(self, keys: Array) -> NDArray[np.bool_]:
        """Which of `keys` are in the set."""
        import numpy as np

        if not len(self):
            return np.zeros(len(keys), dtype=np.bool_)
        at = np.searchsorted(self.sorted, keys).clip(max=len(self) - 1)
        found: NDArray[np.bool_] = self.sorted[at] == keys
        return found


@dataclass(frozen=True)
class Held:
    """Test dialogues, which must not be trained on: their conversations, and what was said in them."""

    talks: Keys
    said: Keys

    @classmethod
    def of(cls, test_dialogues: Iterable[Dialogue] = ()) -> Held:
        talks, said = array("Q"), array("Q")
        for dialogue in test_dialogues:
            talks.append(talk_key(dialogue.id))
            said.append(said_key(dialogue.turns) or NO_KEY)
        return cls(Keys(talks), Keys(said))

    def has_talk(self, dialogue_id: str) -> bool:
        """Whether the dialogue is a turn of a conversation that is tested."""
        return bool(self.talks) and talk_key(dialogue_id) in self.talks

    def has_said(self, messages: Iterable[Turn]) -> bool:
        """Whether a tested dialogue has these words."""
        return bool(self.said) and said_key(messages) in self.said

    def leaks(self, dialogues: pl.DataFrame) -> list[str]:
        """Ids of the dialogues (columns id, turns) that are tested, by conversation or in the same words."""
        if not self.talks:
            return []
        tested = self.talks.among(talk_keys(dialogues["id"])) | self.said.among(said_keys(dialogues["turns"]))
        return sorted(set(dialogues["id"].filter(tested)))


def reply_numbers(dialogues: pl.Series, samples: pl.Series) -> Array:
    """One number a reply, in the order of the `dialogues` (their numbers) and `samples`."""
    import numpy as np

    of_dialogues, of_samples = dialogues.to_numpy(), samples.fill_null(0).to_numpy()
    numbers: Array = np.left_shift(of_dialogues.astype(np.uint64), np.uint64(SAMPLE_BITS))
    numbers += of_samples.astype(np.uint64)
    return numbers


class Excluded:
    """Dialogues that must not appear: by conversation, or by the same situation or first words."""

    def __init__(self, dialogues: Iterable[Dialogue]):
        talks, texts = array("Q"), array("Q")
        for dialogue in dialogues:
            talks.append(talk_key(dialogue.id))
            texts.extend(_opening(dialogue))
        self._talks, self._texts = Keys(talks), Keys(texts)

    def reason(self, dialogue: Dialogue) -> str | None:
        """Why the dialogue is excluded, or None."""
        if talk_key(dialogue.id) in self._talks:
            return "excluded_id"
        return "excluded_text" if any(key in self._texts for key in _opening(dialogue)) else None


def _opening(dialogue: Dialogue) -> set[int]:
    first = next(turn.content for turn in dialogue.turns if turn.role == "user")
    return {key for key in (text_key(dialogue.situation), text_key(first)) if key is not None}
