"""One dialogue's whole life: its row, what teachers said, which sets it entered or why not, and of every arm what it
gives to the held-out replies, its answer and the verdicts. What arms share is shown once.

    life      what the store has about the dialogue, and how it is put into lines
    sets      training and held-out sets
    students  bases, arms and their judges
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster import profile as profiles
from empathy import experiment
from empathy.lower import Lesson, Lowered
from empathy.prompts import SPEAKERS
from empathy.records import Dialogue, Reply
from jobs import choose
from jobs.run import again
from jobs.trace.life import Life, reply_lines, wrapped
from jobs.trace.sets import sets
from jobs.trace.students import students


def trace(dialogue: str, file: str, on: str | None, store_url: str | None, arms: Sequence[str] = ()) -> int:
    """Print it, for the arms that match one of the patterns or for all. Raises ValueError for an id or an arm that does
    not exist."""
    lowered = choose.lowered(experiment.load(file), arms)
    store = profiles.load(on, store_url).open_store()
    life = Life(store, lowered.report.inputs["dialogues"], dialogue, again(file, on, store_url, until="dialogues"))
    sections = (
        _dialogue(life.dialogue),
        _teachers(life, lowered),
        sets(life, lowered),
        students(life, lowered),
        _left(life),
    )
    print("\n\n".join("\n".join(lines) for section in sections if (lines := list(section))))
    return 0


# ---------------------------------------------------------------- the row


def _dialogue(d: Dialogue) -> Iterator[str]:
    rated = ", ".join(f"{who} {rating}" for who, rating in sorted(d.ratings.items()))
    yield f"DIALOGUE {d.id}: {d.split} side, group {d.group}" + (f", emotion {d.emotion}" if d.emotion else "")
    yield f"  ratings: {rated or 'none'} (1 Bad, 2 Okay, 3 Good)"
    if d.situation:
        yield from wrapped("situation", d.situation)
    for turn in d.turns:
        yield from wrapped(SPEAKERS[turn.role], turn.content)
    yield from wrapped("human reply", d.human_reply or "(none)")


# ---------------------------------------------------------------- teachers


def _lessons(lowered: Lowered) -> list[Lesson]:
    return list({cell.lesson.name: cell.lesson for cell in lowered.cells}.values())


def _teachers(life: Life, lowered: Lowered) -> Iterator[str]:
    yield "TEACHERS"
    lessons = _lessons(lowered)
    stages = {s.key: s for n in lessons for s in (n.initial, n.learned) if s is not None}
    for stage in stages.values():
        name, replies = stage.label, life.of(stage, Reply)
        if replies is None:
            yield f"  {name}: not made yet"
        elif not replies:
            yield f"  {name}: was not asked about this dialogue"
        for reply in replies or ():
            yield from reply_lines(name + (f" #{reply.sample}" if reply.sample else ""), reply)


# ---------------------------------------------------------------- what is not there yet


def _left(life: Life) -> Iterator[str]:
    if life.left:
        yield f"NOT MADE YET: {len(life.left)} of the stages that speak of this dialogue; `empathy run` makes them"
