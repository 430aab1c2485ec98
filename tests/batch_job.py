"""A run that tests start, kill and start again: `python -m tests.batch_job URL STORE OPTIONS ROWS PART_ROWS
BATCH_ROWS`.

It makes one stage of two-turn chats through the batch API of the fake at URL, and prints how many batches it told of.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cluster.steps.asking import Job, ask_all
from empathy import replies
from empathy.records import Dialogue, Reply, Turn
from empathy.specs import DialoguesSpec, RandomSplit, RepliesSpec, Teacher
from empathy.stages import Stage
from empathy.store import Store
from serving.providers import Batching, Provider
from serving.rules import teacher

TURNS = ("{dialogue}\n\nAnswer the speaker.", "Now make it warmer.")
SAID = ["My dog died last week.", "I lost my job today.", "I won the race!", "My sister ignores me.", "I failed."]


def dialogues(store: Store, rows: int, part_rows: int) -> Stage:
    """`rows` dialogues, all different."""
    stage = Stage(DialoguesSpec(source="test", digest=f"{rows:064d}", split=RandomSplit(), part_rows=part_rows))
    if not store.done(stage):
        writer, made = store.writer(stage), list[Dialogue]()
        for k in range(rows):
            made.append(Dialogue(f"d{k}", f"g{k}", (Turn("user", f"{SAID[k % 5]} It is number {k}."),)))
        for part, first in enumerate(range(0, rows, part_rows)):
            writer.write_records(part, made[first : first + part_rows], Dialogue)
        writer.commit()
    return stage


def teaching(store: Store, rows: int, part_rows: int, turns: int = 2, label: str = "") -> Stage:
    responder = Teacher(provider="fake", model=teacher.NAME, turns=TURNS[:turns])
    return Stage(RepliesSpec(responder=responder), {"dialogues": dialogues(store, rows, part_rows)}, label=label)


def provider(url: str, **batching: Any) -> Provider:
    quick = {"poll_s": 0.05, "settle_s": 0.3} | batching
    return Provider("fake", url, backoff_s=0.02, patience_s=20, batch=Batching(**quick))


def make(stage: Stage, store: Store, place: Provider, said: list[str] | None = None) -> None:
    """Make one replies stage."""
    parts = tuple(part.rows or 0 for part in store.get(stage.inputs["dialogues"]).parts)
    job = Job(stage, Reply, replies.askings, parts)
    say = print if said is None else said.append
    ask_all([job], store, {"fake": place}, 0, 8, lambda *_: None, say=say)


def main(url: str, store: Store, rows: int, part_rows: int, batch_rows: int) -> None:
    make(teaching(store, rows, part_rows), store, provider(url, requests=batch_rows))


if __name__ == "__main__":
    main(sys.argv[1], Store.open(sys.argv[2], **json.loads(sys.argv[3])), *map(int, sys.argv[4:]))
