"""Judging: what is asked about the replies of one part of the dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from empathy.judges.pairwise import ORDERS, compare
from empathy.judges.rubric import score
from empathy.judges.shown import check_template, template
from empathy.judges.treat import Treated, treat
from empathy.records import Dialogue, Reply, Score, Verdict
from empathy.requests import Asking
from empathy.specs import Judge, Recorded, RepliesSpec, Rubric, VerdictsSpec
from empathy.specs.sides import is_on
from empathy.stages import Stage

if TYPE_CHECKING:  # pyarrow is slow to load, and planning needs the templates alone
    from empathy.store import Store

__all__ = ["Treated", "askings", "check_template", "compare", "record_of", "score", "template", "treat"]


def record_of(stage: Stage) -> type[Verdict] | type[Score]:
    """What a verdicts stage is made of: a pairwise judge gives Verdicts, a rubric Scores."""
    return Score if isinstance(cast(VerdictsSpec, stage.spec).judge, Rubric) else Verdict


def askings(stage: Stage, store: Store, part: int) -> Iterator[tuple[str, Asking[Verdict] | Asking[Score]]]:
    """Everything that one part of a verdicts stage asks: (name unique in the stage, generator that makes its record).

    Joined by dialogue id, on the spec's split alone; replies are treated alike first. Dialogues whose data records no
    reply cannot be judged and are left out (the report counts them).
    """
    spec = cast(VerdictsSpec, stage.spec)
    if isinstance(spec.judge, Rubric):
        return _scores(stage, spec, spec.judge, store, part)
    return _verdicts(stage, spec, spec.judge, store, part)


def _dialogues(stage: Stage, spec: VerdictsSpec, store: Store, part: int) -> Iterator[Dialogue]:
    return (d for d in store.get(stage.inputs["dialogues"]).read(Dialogue, part) if is_on(spec.split, d.split))


# ---------------------------------------------------------------- one reply


def _scores(
    stage: Stage, spec: VerdictsSpec, rubric: Rubric, store: Store, part: int
) -> Iterator[tuple[str, Asking[Score]]]:
    """Every sample of a reply that was not dropped: what was dropped is nobody's reply, and is no example either."""
    check_template(rubric.template, "rubric")
    replies: dict[str, list[Reply]] = {}
    for reply in store.get(stage.inputs["a"]).read(Reply, part):
        if reply.dropped is None:
            replies.setdefault(reply.dialogue_id, []).append(reply)
    for dialogue in _dialogues(stage, spec, store, part):
        for reply in replies.get(dialogue.id, []):
            treated = treat(reply.text, spec.cap_words, dialogue.turns[-1].content)
            yield f"{dialogue.id}/{reply.sample}", score(rubric, dialogue, treated, reply.sample)


# ---------------------------------------------------------------- two replies


def _texts(stage: Stage, store: Store, part: int) -> dict[str, str]:
    """Reply texts of the part by dialogue id. A recorded reply that is empty is one that the data does not have."""
    recorded = isinstance(cast(RepliesSpec, stage.spec).responder, Recorded)
    replies = (r for r in store.get(stage).read(Reply, part) if r.sample == 0)
    return {r.dialogue_id: r.text for r in replies if r.text.strip() or not recorded}


def _comparable(dialogue: Dialogue, stage: Stage, texts: dict[str, dict[str, str]]) -> bool:
    """Whether both sides have a reply. Data may lack one; a model that did not answer raises ValueError."""
    absent = [side for side in ("a", "b") if dialogue.id not in texts[side]]
    for side in absent:
        replies = stage.inputs[side]
        if not isinstance(cast(RepliesSpec, replies.spec).responder, Recorded):
            raise ValueError(
                f"{stage!r}: no reply of side {side} ({replies!r}) to dialogue {dialogue.id!r}; "
                f"ask for its replies on the split that is judged ({cast(VerdictsSpec, stage.spec).split})"
            )
    return not absent


def _verdicts(
    stage: Stage, spec: VerdictsSpec, judge: Judge, store: Store, part: int
) -> Iterator[tuple[str, Asking[Verdict]]]:
    check_template(judge.template, judge.mode)
    texts = {side: _texts(stage.inputs[side], store, part) for side in ("a", "b")}
    for dialogue in _dialogues(stage, spec, store, part):
        if not _comparable(dialogue, stage, texts):
            continue
        said = dialogue.turns[-1].content
        a, b = (treat(texts[side][dialogue.id], spec.cap_words, said) for side in ("a", "b"))
        for repeat in range(judge.repeats):
            for first in ORDERS[judge.mode]:
                yield f"{dialogue.id}/{first}/{repeat}", compare(judge, dialogue, a, b, first, repeat)
