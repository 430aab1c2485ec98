"""The replies stage, as far as it needs no GPU: replies recorded with the data, what is asked of a teacher, and both
pooled."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from empathy.prompts import fill, rewrites
from empathy.records import HUMAN, Dialogue, Reply, Turn
from empathy.requests import Answer, Asking, Request
from empathy.specs import Pooled, Recorded, RepliesSpec, Teacher
from empathy.specs.sides import is_on
from empathy.splits import draw
from empathy.stages import Stage

if TYPE_CHECKING:  # pyarrow is slow to load
    from empathy.store import Store, Writer

T = TypeVar("T")


def recorded(stage: Stage, store: Store, writer: Writer) -> None:
    """Write what a responder answered in the data; a dialogue it did not answer gets a reply dropped as "not_recorded".

    Raises ValueError when it answered none.
    """
    spec = stage.spec
    assert isinstance(spec, RepliesSpec)
    assert isinstance(spec.responder, Recorded)
    responder = spec.responder.responder
    dialogues = store.get(stage.inputs["dialogues"])
    there: Counter[str] = Counter()
    for part in range(len(dialogues.parts)):
        asked = list(_asked(dialogues.read(Dialogue, part), spec))
        replies = [_recorded(dialogue, responder) for dialogue in asked]
        for dialogue in asked:
            there.update([*dialogue.recorded, *([HUMAN] if dialogue.human_reply else [])])
        writer.write_records(part, replies, Reply, drops(replies))
    if not there[responder]:
        known = ", ".join(sorted(there)) or "none"
        raise ValueError(
            f"teacher = {responder!r}: the data holds no replies of it; responders recorded there: {known}"
        )
    writer.commit()


def pooled(stage: Stage, store: Store, writer: Writer) -> None:
    """Write the replies of all inputs as samples of one stage, part by part. See `empathy.specs.Pooled`."""
    spec = stage.spec
    assert isinstance(spec, RepliesSpec)
    assert isinstance(spec.responder, Pooled)
    sources = [store.get(stage.inputs[f"of:{k}"]) for k in range(len(stage.inputs) - 1)]
    for part in range(len(store.get(stage.inputs["dialogues"]).parts)):
        found = [_by_dialogue(source.read(Reply, part)) for source in sources]
        replies = [reply for ident in found[0] for reply in _turned(ident, found, spec.responder.seed)]
        writer.write_records(part, replies, Reply, drops(replies))
    writer.commit()


def _by_dialogue(replies: Iterable[Reply]) -> dict[str, list[Reply]]:
    found: dict[str, list[Reply]] = {}
    for reply in replies:
        found.setdefault(reply.dialogue_id, []).append(reply)
    return found


def _turned(ident: str, found: list[dict[str, list[Reply]]], seed: int) -> Iterator[Reply]:
    """The replies to one dialogue, beginning with those of the source that is drawn for it."""
    first = draw("pooled", seed, ident) % len(found)
    ordered = [reply for source in found[first:] + found[:first] for reply in source[ident]]
    return (replace(reply, sample=k) for k, reply in enumerate(ordered))


def askings(stage: Stage, store: Store, part: int) -> Iterator[tuple[str, Asking[Reply]]]:
    """(name unique in the stage, what to ask) of each reply of one part.

    A prompt with {reply} rewrites the reply of input `improves`, or the human reply where there is no such input; a
    dialogue without one is answered with a dropped reply, and nothing is asked.
    """
    spec = stage.spec
    assert isinstance(spec, RepliesSpec)
    teacher = spec.responder
    assert isinstance(teacher, Teacher)
    improving = rewrites(teacher.turns)
    if "improves" in stage.inputs and not improving:
        raise ValueError(
            "teacher.turns: no turn contains {reply}, so there is nothing to improve; use a strategy that rewrites"
        )
    initial = _usable(stage, store, part)
    for dialogue in _asked(store.get(stage.inputs["dialogues"]).read(Dialogue, part), spec):
        reply = initial.get(dialogue.id) if "improves" in stage.inputs else dialogue.human_reply
        for sample in range(teacher.samples):
            absent = improving and reply is None
            yield (
                f"{dialogue.id}/{sample}",
                _nothing_to_improve(teacher, dialogue, sample) if absent else ask(teacher, dialogue, reply, sample),
            )


def ask(teacher: Teacher, dialogue: Dialogue, reply: str | None, sample: int = 0) -> Asking[Reply]:
    """One chat of one or several turns; the last answer is the reply. A turn that brings no usable answer ends it."""
    messages = [Turn("system", teacher.system)] if teacher.system else []
    answers: list[Answer] = []
    fault = None
    for template in teacher.turns:
        if answers:
            messages.append(Turn("assistant", tidy(answers[-1].text)))
        messages.append(Turn("user", fill(template, dialogue, reply)))
        request = Request(
            provider=teacher.provider,
            model=teacher.model,
            messages=tuple(messages),
            temperature=teacher.temperature,
            max_tokens=teacher.max_tokens,
            seed=teacher.seed,
            sample=sample,
        )
        answers.append((yield request))
        fault = _fault(answers[-1])
        if fault:
            break
    last = answers[-1]
    return Reply(
        dialogue_id=dialogue.id,
        model=teacher.model,
        text=tidy(last.text),
        sample=sample,
        finish_reason=last.finish_reason,
        model_served=last.model_served,
        tokens_in=_total([a.tokens_in for a in answers]),
        tokens_out=_total([a.tokens_out for a in answers]),
        request=request.key,
        dropped=fault,
        turns=tuple(messages) if len(teacher.turns) > 1 else (),
    )


def drops(replies: Iterable[Reply]) -> dict[str, int]:
    """How many replies were dropped, by the name of the reason (what stands before ":")."""
    return dict(Counter(reply.dropped.partition(":")[0] for reply in replies if reply.dropped))


def tidy(text: str) -> str:
    """NFC without outer blanks; what is no Unicode (a lone surrogate) or no text (NUL) becomes U+FFFD."""
    return unicodedata.normalize("NFC", re.sub("[\ud800-\udfff\0]", "\ufffd", text)).strip()


def _fault(answer: Answer) -> str | None:
    if answer.refused is not None:
        return f"refused: {tidy(answer.refused)}"
    if answer.finish_reason == "content_filter":
        return "refused: content_filter"
    if answer.finish_reason == "length":
        return "cut_off"
    return None if answer.text.strip() else "empty"


def _total(counts: list[int | None]) -> int | None:
    """The sum; None when one of them is unknown."""
    known = [n for n in counts if n is not None]
    return sum(known) if len(known) == len(counts) else None


def _asked(dialogues: Iterable[Dialogue], spec: RepliesSpec) -> Iterator[Dialogue]:
    return (d for d in dialogues if is_on(spec.split, d.split))


def _recorded(dialogue: Dialogue, responder: str) -> Reply:
    text = dialogue.reply_of(responder)
    return Reply(dialogue.id, responder, text or "", dropped=None if text else "not_recorded")


def _usable(stage: Stage, store: Store, part: int) -> dict[str, str]:
    if "improves" not in stage.inputs:
        return {}
    replies = store.get(stage.inputs["improves"]).read(Reply, part)
    return {r.dialogue_id: r.text for r in replies if r.sample == 0 and r.dropped is None}


def _nothing_to_improve(teacher: Teacher, dialogue: Dialogue, sample: int) -> Asking[Reply]:
    yield from ()
    return Reply(dialogue.id, teacher.model, "", sample, finish_reason="", dropped="nothing_to_improve")
