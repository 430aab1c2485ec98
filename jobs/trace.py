"""One dialogue's whole life: its row, what teachers said, which sets it entered or why not, and every arm's answer and
verdicts. What arms share is shown once."""

from __future__ import annotations

import difflib
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from cluster import profile as profiles
from empathy import experiment
from empathy.lower import Cell, Lesson, Lowered
from empathy.prompts import SPEAKERS
from empathy.records import Demonstration, Dialogue, Preference, Reply, Score, Verdict
from empathy.report.cells import name_of
from empathy.specs import ExamplesSpec, Rubric, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import choose

R = TypeVar("R", Reply, Demonstration, Preference, Verdict, Score)
WIDTH = 116
FEW = 4
"""With so many arms or fewer, judges are quoted."""


class Life:
    """What the store has about one dialogue. `left` collects what is not made yet."""

    def __init__(self, store: Store, dialogues: Stage, ident: str):
        """Raises ValueError when the dialogues are not made, or none has this id."""
        artifact = store.find("dialogues", dialogues.key)
        if artifact is None:
            raise ValueError(
                f"the dialogues are not in {store.url} yet; `empathy run FILE --until dialogues` reads them"
            )
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
        artifact = self.store.find(stage.kind, stage.key)
        if artifact is None:
            if stage not in self.left:
                self.left.append(stage)
            return None
        if self.part >= len(artifact.parts):
            return []
        return [row for row in artifact.read(cls, self.part) if row.dialogue_id == self.ident]


def trace(dialogue: str, file: str, on: str | None, store_url: str | None, arms: Sequence[str] = ()) -> int:
    """Print it, for the arms that match one of the patterns or for all. Raises ValueError for an id or an arm that does
    not exist."""
    lowered = choose.lowered(experiment.load(file), arms)
    store = profiles.load(on, store_url).open_store()
    life = Life(store, lowered.report.inputs["dialogues"], dialogue)
    sections = (
        _dialogue(life.dialogue),
        _teachers(life, lowered),
        _sets(life, lowered),
        _students(life, lowered),
        _left(life),
    )
    print("\n\n".join("\n".join(lines) for section in sections if (lines := list(section))))
    return 0


def _text(name: str, text: str, indent: int = 2) -> Iterator[str]:
    """`name: text`, wrapped under itself."""
    yield from textwrap.wrap(f"{name}: {' '.join(text.split())}", WIDTH, **_under(indent))


def _under(indent: int) -> dict[str, Any]:
    return {"initial_indent": " " * indent, "subsequent_indent": " " * (indent + 2)}


# ---------------------------------------------------------------- the row


def _dialogue(d: Dialogue) -> Iterator[str]:
    rated = ", ".join(f"{who} {rating}" for who, rating in sorted(d.ratings.items()))
    yield f"DIALOGUE {d.id}: {d.split} side, group {d.group}" + (f", emotion {d.emotion}" if d.emotion else "")
    yield f"  ratings: {rated or 'none'} (1 Bad, 2 Okay, 3 Good)"
    if d.situation:
        yield from _text("situation", d.situation)
    for turn in d.turns:
        yield from _text(SPEAKERS[turn.role], turn.content)
    yield from _text("human reply", d.human_reply or "(none)")


# ---------------------------------------------------------------- teachers


def _lessons(lowered: Lowered) -> list[Lesson]:
    return list({cell.lesson.name: cell.lesson for cell in lowered.cells}.values())


def _teachers(life: Life, lowered: Lowered) -> Iterator[str]:
    yield "TEACHERS"
    lessons = _lessons(lowered)
    stages = {s.key: s for n in lessons for s in (n.initial, n.learned) if s is not None}
    for stage in stages.values():
        improved = f" on {stage.inputs['improves'].label}" if "improves" in stage.inputs else ""
        name, replies = f"{stage.label}{improved}", life.of(stage, Reply)
        if replies is None:
            yield f"  {name}: not made yet"
        elif not replies:
            yield f"  {name}: was not asked about this dialogue"
        for reply in replies or ():
            yield from _reply(name + (f" #{reply.sample}" if reply.sample else ""), reply)


def _reply(name: str, reply: Reply) -> Iterator[str]:
    """A reply, and the turns before it where there were several (what was asked shows by its first words)."""
    for number, turn in enumerate(reply.turns):
        asked = turn.role == "user"
        yield from _text(f"{name}, turn {number // 2 + 1} {'asked' if asked else 'said'}", _short(turn.content, asked))
    why = f" [dropped: {reply.dropped}]" if reply.dropped else ""
    ended = f" [{reply.finish_reason}]" if reply.finish_reason not in ("stop", "") else ""
    yield from _text(name, f"{reply.text or '(nothing)'}{why}{ended}")


def _short(text: str, cut: bool, width: int = 200) -> str:
    return textwrap.shorten(text, width, placeholder=" ...") if cut else text


# ---------------------------------------------------------------- training and held-out sets


def _sets(life: Life, lowered: Lowered) -> Iterator[str]:
    """Each set of the arms once."""
    yield "SETS OF EXAMPLES"
    for stage in walk([lowered.report]):
        spec = stage.spec
        about = stage.inputs.get("dialogues")
        if isinstance(spec, ExamplesSpec) and about == lowered.report.inputs["dialogues"]:
            if spec.split != life.dialogue.split:
                continue  # the other side of the split: said once, by the dialogue's own side
            yield from _set(life, stage, spec)


def _set(life: Life, stage: Stage, spec: ExamplesSpec) -> Iterator[str]:
    if spec.objective == "sft":
        shown = life.of(stage, Demonstration)
        said = [f"learns the {e.source} reply" for e in shown or ()]
    else:
        pairs = life.of(stage, Preference)
        shown, said = (
            None if pairs is None else [],
            [f"{p.chosen_source} over {p.rejected_source}" for p in pairs or ()],
        )
    if shown is None:
        yield f"  {stage.label}: not made yet"
    else:
        yield f"  {stage.label}: {', '.join(said) or _why_not(life, stage)}"


def _why_not(life: Life, stage: Stage) -> str:
    """Why a finished set has no example of this dialogue: asked of the method and the screens again."""
    from empathy import examples  # polars is slow to load

    reasons = dict.fromkeys(examples.why_none(stage, life.store, life.part, life.ident))
    return f"dropped: {', '.join(reasons)}" if reasons else "not selected by its method"


# ---------------------------------------------------------------- students and judges


def _students(life: Life, lowered: Lowered) -> Iterator[str]:
    yield "STUDENTS"
    if life.dialogue.split != "test":
        yield "  asked about test dialogues alone"
        return
    bases = {n.partition(":")[0]: s for n, s in lowered.report.inputs.items() if n.startswith("base")}
    for slot in bases:
        stage = lowered.report.inputs[f"{slot}:replies"]
        yield from _answered(life, lowered.report.locator[slot], stage)
    for cell in lowered.cells:
        yield ""
        yield from _answered(life, cell.name, cell.replies)
        yield from _verdicts(life, lowered, cell)


def _answered(life: Life, name: str, stage: Stage) -> Iterator[str]:
    replies = life.of(stage, Reply)
    if replies is None:
        yield f"  {name}: not made yet"
    for reply in replies or ():
        yield from _reply(name, reply)


def _verdicts(life: Life, lowered: Lowered, cell: Cell) -> Iterator[str]:
    """A line a judge: against whom, and how it ended in each order. What judges said is quoted for few arms alone."""
    told: dict[str, list[str]] = defaultdict(list)
    quoted: list[str] = []
    for name, stage in lowered.report.inputs.items():
        slot, *what = name.split(":")
        if slot == cell.slot and isinstance(stage.spec, VerdictsSpec):
            opponent = ":".join(x for x in what[1:] if not x.startswith("judge"))
            who = name_of(opponent, lowered.report.locator) if opponent else "alone"
            said, raw = _judged(life, stage, stage.spec)
            told[stage.spec.judge.model].append(f"{who}: {said}")
            quoted += [f"{stage.spec.judge.model} on {who}: {' '.join(text.split())}" for text in raw]
    for model, ends in told.items():
        yield from _text(f"{model}, shown first / second", ", ".join(ends), indent=4)
    if len(lowered.cells) <= FEW:
        yield from (line for text in quoted for line in textwrap.wrap(text[:400], WIDTH, **_under(6)))


def _judged(life: Life, stage: Stage, spec: VerdictsSpec) -> tuple[str, list[str]]:
    """How it ended, and what the judge wrote."""
    if isinstance(spec.judge, Rubric):
        scores = life.of(stage, Score)
        ends = None if scores is None else [_score(s) for s in scores]
        raw = [text for s in scores or () for text in s.raw]
    else:
        verdicts = life.of(stage, Verdict)
        ends = None if verdicts is None else [_outcome(v) for v in verdicts]
        raw = [v.raw for v in verdicts or ()]
    return "not made yet" if ends is None else " / ".join(ends) or "not compared (a reply is missing in the data)", raw


def _outcome(v: Verdict) -> str:
    return {"a": "wins", "b": "loses", "tie": "ties"}.get(v.overall or "", v.status)


def _score(s: Score) -> str:
    return s.status if s.overall is None else f"{s.overall:.2f} of 5"


# ---------------------------------------------------------------- what is not there yet


def _left(life: Life) -> Iterator[str]:
    if life.left:
        yield f"NOT MADE YET: {len(life.left)} of the stages that speak of this dialogue; `empathy run` makes them"
