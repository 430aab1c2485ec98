"""What flows from stage to stage.

Dialogue -> Reply -> Demonstration | Preference -> (weights) -> Reply -> Verdict -> Estimate

Records are frozen, plain and small. They travel as Arrow tables (`empathy.columns`); joins are by `dialogue_id`,
never by position.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "valid", "test"]
Outcome = Literal["a", "b", "tie"]
GOOD, OKAY, BAD = 3, 2, 1
HUMAN = "human"
"""The responder name of the person who answered in the source data."""


def content_id(*parts: object) -> str:
    """A 20-hex-digit identity of JSON-able `parts`; equal contents have equal ids in every process."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: Role
    content: str

    def as_message(self) -> dict[str, str]:
        """The OpenAI shape: {"role": ..., "content": ...}."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation that waits for a reply: the last turn is the speaker's (role "user").

    `group` is the cluster of error bars and group-wise splits (W&P `part_no`, a persona, a conversation). `ratings`
    maps a responder ("human", "gpt-4", ...) to 1 Bad, 2 Okay, 3 Good; `recorded` maps a responder to the reply stored
    with the data.
    """

    id: str
    group: str
    turns: tuple[Turn, ...]
    split: Split = "train"
    situation: str | None = None
    emotion: str | None = None
    human_reply: str | None = None
    ratings: dict[str, int] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)

    def reply_of(self, responder: str) -> str | None:
        """The recorded reply of `responder` ("human" included), or None."""
        return self.human_reply if responder == HUMAN else self.recorded.get(responder)


@dataclass(frozen=True, slots=True)
class Reply:
    """Somebody's answer to a dialogue: a recorded model, a teacher, a base, a student, a person.

    `dropped` is None for a usable reply, else the reason why there is none (`text` is then what arrived, possibly "").
    `turns` are the messages of a several-turn request before the last reply. `tokens_in`/`tokens_out` and
    `model_served` are None where unknown. `token_ids` are set for students only (proof of what was generated).
    """

    dialogue_id: str
    model: str
    text: str
    sample: int = 0
    finish_reason: str = "stop"
    model_served: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    request: str | None = None
    dropped: str | None = None
    turns: tuple[Turn, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Prompt -> reply, for SFT. `source` says whose reply it is: human, teacher, improved."""

    id: str
    dialogue_id: str
    group: str
    messages: tuple[Turn, ...]
    reply: str
    source: str

    @classmethod
    def of(cls, dialogue: Dialogue, messages: tuple[Turn, ...], reply: str, source: str) -> Demonstration:
        ident = content_id([t.as_message() for t in messages], reply)
        return cls(ident, dialogue.id, dialogue.group, messages, reply, source)


@dataclass(frozen=True, slots=True)
class Preference:
    """Prompt -> chosen over rejected, for DPO."""

    id: str
    dialogue_id: str
    group: str
    messages: tuple[Turn, ...]
    chosen: str
    rejected: str
    chosen_source: str
    rejected_source: str

    @classmethod
    def of(
        cls, dialogue: Dialogue, messages: tuple[Turn, ...], chosen: tuple[str, str], rejected: tuple[str, str]
    ) -> Preference:
        """`chosen` and `rejected` are (text, source) pairs. Raises ValueError when the two texts are equal."""
        if chosen[0] == rejected[0]:
            raise ValueError(f"dialogue {dialogue.id!r}: chosen equals rejected ({chosen[0][:60]!r})")
        ident = content_id([t.as_message() for t in messages], chosen[0], rejected[0])
        return cls(ident, dialogue.id, dialogue.group, messages, chosen[0], rejected[0], chosen[1], rejected[1])


Side = Literal["reply", "chosen", "rejected"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """What a checkpoint gives to one reply of an example: sum over its `tokens` reply tokens (end token included), in
    nats."""

    example_id: str
    side: Side
    logprob_nats: float
    tokens: int


VerdictStatus = Literal["ok", "unreadable", "refused", "error"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge call. "a" is the arm under test, "b" its opponent, whatever the order they were shown in.

    `first` names the side shown first. Outcomes are None unless `status` is "ok": unreadable is never a tie.
    """

    id: str
    dialogue_id: str
    group: str
    judge: str
    mode: str
    first: Literal["a", "b"]
    repeat: int
    status: VerdictStatus
    overall: Outcome | None = None
    cognitive: Outcome | None = None
    affective: Outcome | None = None
    compassionate: Outcome | None = None
    margin: int | None = None
    raw: str = ""
    model_served: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    attempts: int = 1
    words_a: int = 0
    words_b: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """What a rubric judge gives to one reply: the means of its calls, 1 to 5 a dimension; `overall` is their mean.

    All four are None unless `status` is "ok": an unreadable score is no number, and a reply without one is unrated.
    `raw` is what each call that was read said, in order; of a reply that was not scored, what could not be read.
    """

    id: str
    dialogue_id: str
    group: str
    judge: str
    sample: int
    status: VerdictStatus
    overall: float | None = None
    cognitive: float | None = None
    affective: float | None = None
    compassionate: float | None = None
    raw: tuple[str, ...] = ()
    model_served: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    attempts: int = 0
    words: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of the report with its interval and what it rests on. None where it could not be known.

    `key` is the artifact the number was computed from; `n` rows in `clusters` clusters; `low`/`high` the 95% interval.
    """

    arm: str
    opponent: str | None
    measure: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    judge: str | None
    note: str
    key: str
