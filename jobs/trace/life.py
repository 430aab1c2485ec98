"""What the store has about one dialogue, and how it is put into lines."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from empathy.artifact import Artifact
from empathy.records import Demonstration, Dialogue, Logprob, Preference, Reply, Score, Side, Verdict
from empathy.stages import Stage
from empathy.store import Store

R = TypeVar("R", Reply, Demonstration, Preference, Verdict, Score)
WIDTH = 116
FEW = 4
"""With so many arms or fewer, judges are quoted and arms are named."""


class Life:
    """What the store has about one dialogue. `left` collects what is not made yet."""

    def __init__(self, store: Store, dialogues: Stage, ident: str, command: str):
        """Raises ValueError when the dialogues are not made (`command` makes them), or none has this id."""
        artifact = store.find("dialogues", dialogues.key)
        if artifact is None:
            raise ValueError(f"the dialogues are not in {store.url} yet; `{command}` reads them")
        self.store, self.ident, self.left, names = store, ident, list[Stage](), list[str]()
        for part in range(len(artifact.parts)):
            here = artifact.table(part).column("id").to_pylist()
            if ident in here:
                self.part = part
                self.dialogue: Dialogue = next(d for d in artifact.read(Dialogue, part) if d.id == ident)
                return
            names += here
        near = ", ".join(difflib.get_close_matches(ident, names, 3, 0.3) or names[:3])
        raise ValueError(
            f"dialogue = {ident!r}: none of the {len(names):,} dialogues has this id; there are {near}, ..."
        )

    def of(self, stage: Stage, cls: type[R]) -> list[R] | None:
        """The stage's rows about the dialogue; None, and noted, when it is not made. Part k of every stage is about the
        dialogues of part k."""
        artifact = self._find(stage)
        if artifact is None:
            return None
        if self.part >= len(artifact.parts):
            return []
        return [row for row in artifact.read(cls, self.part) if row.dialogue_id == self.ident]

    def logprobs(self, stage: Stage, examples: Collection[str]) -> dict[tuple[str, Side], Logprob] | None:
        """What a checkpoint gives to these examples, by example id and side; None, and noted, when it is not made."""
        artifact = self._find(stage)
        if artifact is None:
            return None
        rows = artifact.read(Logprob, self.part) if self.part < len(artifact.parts) else ()
        return {(row.example_id, row.side): row for row in rows if row.example_id in examples}

    def _find(self, stage: Stage) -> Artifact | None:
        artifact = self.store.find(stage.kind, stage.key)
        if artifact is None and stage not in self.left:
            self.left.append(stage)
        return artifact


# ---------------------------------------------------------------- lines


def wrapped(name: str, text: str, indent: int = 2) -> Iterator[str]:
    """`name: text`, wrapped under itself."""
    yield from textwrap.wrap(f"{name}: {' '.join(text.split())}", WIDTH, **under(indent))


def under(indent: int) -> dict[str, Any]:
    return {"initial_indent": " " * indent, "subsequent_indent": " " * (indent + 2)}


def reply_lines(name: str, reply: Reply) -> Iterator[str]:
    """A reply, and the turns before it where there were several (what was asked shows by its first words)."""
    for number, turn in enumerate(reply.turns):
        asked = turn.role == "user"
        yield from wrapped(
            f"{name}, turn {number // 2 + 1} {'asked' if asked else 'said'}", _short(turn.content, asked)
        )
    why = f" [dropped: {reply.dropped}]" if reply.dropped else ""
    ended = f" [{reply.finish_reason}]" if reply.finish_reason not in ("stop", "") else ""
    yield from wrapped(name, f"{reply.text or '(nothing)'}{why}{ended}")


def _short(text: str, cut: bool, width: int = 200) -> str:
    return textwrap.shorten(text, width, placeholder=" ...") if cut else text
