"""What a stage that asks is cut into, whichever way its requests are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from empathy.requests import Asking
from empathy.stages import Stage
from empathy.store import Store

Builder = Callable[[Stage, Store, int], Iterator[tuple[str, Asking[Any]]]]
Report = Callable[[Stage, int, int], None]
"""(stage, dialogues done, dialogues in all)."""


@dataclass(frozen=True)
class Job:
    """One stage to ask: its records are of `record_cls`, made by the generators of `builder(stage, store, part)`."""

    stage: Stage
    record_cls: type
    builder: Builder
    dialogues: tuple[int, ...]
    """How many dialogues each part is about."""


@dataclass(frozen=True)
class Done:
    """Part `part` of job number `job` is in the store."""

    job: int
    part: int


def drops(records: Sequence[Any]) -> Counter[str]:
    """Rows without a usable outcome, by reason (what stands before a colon)."""
    reasons = (str(getattr(r, "dropped", None) or getattr(r, "status", "ok")) for r in records)
    return Counter(f"dropped: {reason.partition(':')[0]}" for reason in reasons if reason != "ok")
