"""What a run would be refused for once its dialogues are read, told before: by the sources themselves."""

from __future__ import annotations

from collections.abc import Callable

from empathy import doors
from empathy.stages import Stage
from empathy.store import Store
from jobs.estimate.corpus import Corpus


def look(store: Store, corpus: Callable[[Stage], Corpus]) -> doors.Look:
    """Looks at dialogues that are made, and else at a source that is small enough to be read for a plan (`corpus`)."""
    made = doors.in_store(store)

    def both(dialogues: Stage) -> doors.Seen | None:
        return made(dialogues) or _in_source(corpus(dialogues))

    return both


def _in_source(corpus: Corpus) -> doors.Seen | None:
    from empathy.cases import table

    if not corpus.whole or corpus.sides is None:
        return None
    return doors.Seen(corpus.sides, lambda names: [table(corpus.some)])
