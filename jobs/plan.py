"""What an experiment would do, said before anything is done. Imports neither ray nor torch."""

from __future__ import annotations

from collections import Counter

from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.specs import KINDS, RepliesSpec, VerdictsSpec
from empathy.specs import Teacher as TeacherReplies
from empathy.stages import Stage, missing, walk
from empathy.store import Store


def asks_a_model(stage: Stage) -> bool:
    """Whether making the stage sends requests to a teacher or judge."""
    spec = stage.spec
    return isinstance(spec, VerdictsSpec) or (
        isinstance(spec, RepliesSpec) and isinstance(spec.responder, TeacherReplies)
    )


def calls(stage: Stage, store: Store) -> int | None:
    """The most requests that the stage sends when every first attempt is readable; None while its dialogues are not
    made."""
    dialogues = store.find("dialogues", stage.inputs["dialogues"].key)
    if dialogues is None:
        return None
    sides = dialogues.counts
    if isinstance(stage.spec, VerdictsSpec):
        orders = 2 if stage.spec.judge.mode == "robust" else 1
        return sides.get(stage.spec.split, dialogues.rows) * orders * stage.spec.judge.repeats
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, TeacherReplies)
    asked = sides.get(stage.spec.split, dialogues.rows) if stage.spec.split else dialogues.rows
    return asked * len(stage.spec.responder.turns) * stage.spec.responder.samples


def text(experiment: Experiment, lowered: Lowered, store: Store) -> str:
    """The plan as a table."""
    stages = list(walk([lowered.report]))
    finished = store.finished(stages)
    to_make = missing([lowered.report], lambda stage: stage.key in finished)
    waiting = {s.key for s in to_make}
    lines = [
        f"{experiment.name}: {experiment.question}",
        f"{len(lowered.cells)} trained students, {len(stages)} stages, {len(to_make)} to make; store {store.url}",
        "",
        f"{'kind':<12}{'stages':>8}{'to make':>9}{'calls at most':>15}",
    ]
    counts, left = Counter(s.kind for s in stages), Counter(s.kind for s in to_make)
    for kind in KINDS:
        asked = [calls(s, store) for s in to_make if s.kind == kind and asks_a_model(s)]
        known = [c for c in asked if c is not None]
        said = "" if not asked else f"{sum(known):,}" if len(known) == len(asked) else "when read"
        lines.append(f"{kind:<12}{counts[kind]:>8}{left[kind]:>9}{said:>15}")
    alone = sum(len(list(walk([c.replies]))) for c in lowered.cells)
    shared = len(list(walk([c.replies for c in lowered.cells])))
    lines += [
        "",
        f"up to the students' replies, the arms share: {shared} stages instead of {alone} if each were run alone",
    ]
    lines += ["", "students: " + ", ".join(lowered.checkpoints)]
    lines += [
        "",
        *(f"  {'to make' if s.key in waiting else 'done   '}  {s.kind:<11} {s.key[:12]}  {s.label}" for s in stages),
    ]
    return "\n".join(lines)
