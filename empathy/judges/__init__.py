"""Judging: what is asked about the replies of one part of the test dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from empathy.judges.pairwise import ORDERS, check_template, compare, template
from empathy.judges.treat import Treated, treat
from empathy.records import Dialogue, Reply, Verdict
from empathy.requests import Asking
from empathy.specs import Recorded, RepliesSpec, VerdictsSpec
from empathy.stages import Stage

if TYPE_CHECKING:  # pyarrow is slow to load, and planning needs the templates alone
    from empathy.store import Store

__all__ = ["Treated", "askings", "check_template", "compare", "template", "treat"]


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


def askings(stage: Stage, store: Store, part: int) -> Iterator[tuple[str, Asking[Verdict]]]:
    """Every comparison of one part of a verdicts stage: (name unique in the stage, generator that makes its verdict).

    Joined by dialogue id, on the spec's split alone; both replies are treated alike first. Dialogues whose data records
    no reply on one side cannot be compared and are left out (the report counts them).
    """
    spec = cast(VerdictsSpec, stage.spec)
    check_template(spec.judge.template, spec.judge.mode)
    texts = {side: _texts(stage.inputs[side], store, part) for side in ("a", "b")}
    for dialogue in store.get(stage.inputs["dialogues"]).read(Dialogue, part):
        if dialogue.split != spec.split or not _comparable(dialogue, stage, texts):
            continue
        said = dialogue.turns[-1].content
        a, b = (treat(texts[side][dialogue.id], spec.cap_words, said) for side in ("a", "b"))
        for repeat in range(spec.judge.repeats):
            for first in ORDERS[spec.judge.mode]:
                yield f"{dialogue.id}/{first}/{repeat}", compare(spec.judge, dialogue, a, b, first, repeat)
