"""How much empathy one reply shows, 1 to 5 a dimension, as the mean of several calls; beside it the reader of what
comes back.

The judge answers with one JSON object, reasons first:

    {"notes": "...", "cognitive": 4, "affective": 3, "compassionate": 5}

A level that is missing, no whole number, or outside 1 to 5 makes the whole answer unreadable.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from statistics import fmean

from empathy.judges.shown import DIMENSIONS, case_of, draw, filled, json_objects, neutral, total
from empathy.judges.treat import Treated
from empathy.records import Dialogue, Score, Turn, VerdictStatus, content_id
from empathy.requests import Answer, Asking, Request
from empathy.specs import Rubric

Levels = dict[str, int]
LOWEST, HIGHEST = 1, 5


def score_id(rubric: Rubric, dialogue: Dialogue, text: str) -> str:
    """Content hash of the case, the reply and the judge. How many calls and attempts are made is left out: asking once
    more does not make the first answer another one."""
    who = rubric.model_dump(mode="json", exclude={"calls", "attempts"})
    return content_id([t.as_message() for t in dialogue.turns], text, who)


def score(rubric: Rubric, dialogue: Dialogue, reply: Treated, sample: int = 0) -> Asking[Score]:
    """The score of one reply, from `rubric.calls` calls that could all be read; with one that could not be read in
    `rubric.attempts` attempts, or that was refused, there is no score. An empty reply has the lowest, without a
    call."""
    ident = score_id(rubric, dialogue, reply.text)
    read: list[Levels] = []
    answers: list[Answer] = []

    def scored(status: VerdictStatus, raw: Sequence[str]) -> Score:
        means = {d: fmean(levels[d] for levels in read) for d in DIMENSIONS} if status == "ok" else {}
        return Score(
            id=ident,
            dialogue_id=dialogue.id,
            group=dialogue.group,
            judge=rubric.model,
            sample=sample,
            status=status,
            overall=fmean(means.values()) if means else None,
            raw=tuple(raw),
            model_served=answers[-1].model_served if answers else None,
            tokens_in=total([a.tokens_in for a in answers]),
            tokens_out=total([a.tokens_out for a in answers]),
            attempts=len(answers),
            words=reply.words,
            **means,
        )

    if reply.empty:
        read = [dict.fromkeys(DIMENSIONS, LOWEST)]
        return scored("ok", ["decided without a call: the reply is empty"])
    raw: list[str] = []
    for call in range(rubric.calls):
        levels = yield from _call(rubric, dialogue, reply.text, ident, call, answers)
        last = answers[-1]
        if levels is None:
            return scored("unreadable" if last.refused is None else "refused", [last.refused or last.text])
        read.append(levels)
        raw.append(last.text)
    return scored("ok", raw)


def _call(
    rubric: Rubric, dialogue: Dialogue, text: str, ident: str, call: int, answers: list[Answer]
) -> Generator[Request, Answer, Levels | None]:
    """The levels of one call, asked for until they can be read; every answer is put into `answers`."""
    for attempt in range(rubric.attempts):
        messages = prompt(rubric, case_of(dialogue), text, ident, attempt)
        answers.append((yield _request(rubric, messages, call)))
        if answers[-1].refused is not None:
            return None
        if levels := read_levels(answers[-1].text):
            return levels
    return None


def prompt(rubric: Rubric, case: str, text: str, ident: str, attempt: int) -> tuple[Turn, ...]:
    """The messages of one call. A new attempt has a new nonce: the old prompt may only bring the old answer back."""
    nonce, *_ = draw(ident, attempt, (case, text))
    return filled(rubric.template, {"nonce": nonce, "case": neutral(case), "reply": neutral(text)})


def _request(rubric: Rubric, messages: tuple[Turn, ...], call: int) -> Request:
    return Request(
        rubric.provider,
        rubric.model,
        messages,
        temperature=rubric.temperature,
        max_tokens=rubric.max_tokens,
        sample=call,
        json_reply=True,
    )


def read_levels(text: str) -> Levels | None:
    """The level of each dimension in the last JSON object of `text`; None when one is missing, no whole number, or
    outside 1 to 5."""
    last = [{}, *json_objects(text)][-1]
    levels = {d: last.get(d) for d in DIMENSIONS}
    if any(type(v) is not int or not LOWEST <= v <= HIGHEST for v in levels.values()):
        return None
    return {d: int(str(v)) for d, v in levels.items()}
