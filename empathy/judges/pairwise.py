"""Which of two replies shows more empathy: the prompt, and beside it the reader of what comes back.

Layout of the `robust` prompt (one system turn with the instructions, one user turn with the data). NONCE is 8
lower-case hex digits, new in every call; the two codes (letter digit letter digit, as K4T7) are new in every call too:

    <<CASE NONCE>>
    Speaker: ...            one line a turn: "Speaker: " (role user), "Listener: " (role assistant)
    <<END NONCE>>
    <<REPLY CODE1 NONCE>>
    the reply that is shown first
    <<END NONCE>>
    <<REPLY CODE2 NONCE>>
    the reply that is shown second
    <<END NONCE>>

The judge answers with one JSON object, reasons first; each outcome is one of the two codes or "tie":

    {"notes": "...", "cognitive": "K4T7", "affective": "tie", "compassionate": "R2M9", "overall": "K4T7", "margin": 1}

Layout of the `paper` prompt (one user turn): the same blocks without nonces: `<<CASE>>`, `<<REPLY 1>>`, `<<REPLY 2>>`,
`<<END>>`. The judge's last line is "Winner: 1" or "Winner: 2". Reply 1 is the opponent's (the base), as published.

`empathy.judges.shown.read_prompt` reads both layouts back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from empathy.judges.shown import DIMENSIONS, case_of, draw, filled, json_objects, neutral, total
from empathy.judges.treat import Treated
from empathy.records import Dialogue, Outcome, Turn, Verdict, VerdictStatus, content_id
from empathy.requests import Answer, Asking, Request
from empathy.specs import Judge

Side = Literal["a", "b"]
Mode = Literal["robust", "paper"]
ORDERS: Mapping[Mode, tuple[Side, ...]] = {"robust": ("a", "b"), "paper": ("b",)}
"""Which side is shown first in the calls of a pair: both in turn, or as published always the opponent."""

# ---------------------------------------------------------------- asking


def verdict_id(judge: Judge, dialogue: Dialogue, shown: Sequence[str], repeat: int) -> str:
    """Content hash of the case, the two replies in the order shown, the judge and the repeat.

    `repeats` and `attempts` are left out: asking once more does not make the first answer another one.
    """
    who = judge.model_dump(mode="json", exclude={"repeats", "attempts"})
    return content_id([t.as_message() for t in dialogue.turns], list(shown), who, repeat)


def prompt(
    judge: Judge, case: str, shown: Sequence[str], ident: str, attempt: int
) -> tuple[tuple[Turn, ...], tuple[str, str]]:
    """The messages of one call and the codes of the first and second reply."""
    nonce, *drawn = draw(ident, attempt, (case, *shown))
    codes = (drawn[0], drawn[1]) if judge.mode == "robust" else ("1", "2")
    fields = {"case": neutral(case), "reply_1": neutral(shown[0]), "reply_2": neutral(shown[1])}
    if judge.mode == "robust":
        fields |= {"nonce": nonce, "code_1": codes[0], "code_2": codes[1]}
    return filled(judge.template, fields), codes


def _without_call(judge: Judge, a: Treated, b: Treated) -> tuple[Outcome, str] | None:
    """Outcomes that need no judge: an empty reply loses; in `robust` mode equal replies tie."""
    if not a.text or not b.text:
        winner: Outcome = "a" if a.text else "b" if b.text else "tie"
        return winner, "decided without a call: " + (
            "both replies are" if winner == "tie" else "the other reply is"
        ) + " empty"
    if judge.mode == "robust" and a.text == b.text:
        return "tie", "decided without a call: the replies are identical"
    return None


def compare(judge: Judge, dialogue: Dialogue, a: Treated, b: Treated, first: Side, repeat: int = 0) -> Asking[Verdict]:
    """One verdict on `a` and `b`, `first` shown first; yields a request for every attempt until an answer is readable.

    `paper` mode makes one attempt whatever `judge.attempts`. A new attempt has new codes and a new nonce: at
    temperature 0 the old prompt would only bring the old answer back.
    """
    shown = (a.text, b.text) if first == "a" else (b.text, a.text)
    ident = verdict_id(judge, dialogue, shown, repeat)

    def verdict(status: VerdictStatus, outcomes: Mapping[str, Any], raw: str, answers: Sequence[Answer]) -> Verdict:
        return Verdict(
            id=ident,
            dialogue_id=dialogue.id,
            group=dialogue.group,
            judge=judge.model,
            mode=judge.mode,
            first=first,
            repeat=repeat,
            status=status,
            raw=raw,
            model_served=answers[-1].model_served if answers else None,
            tokens_in=total([x.tokens_in for x in answers]),
            tokens_out=total([x.tokens_out for x in answers]),
            attempts=len(answers),
            words_a=a.words,
            words_b=b.words,
            **outcomes,
        )

    if decided := _without_call(judge, a, b):
        names = ("overall", *DIMENSIONS) if judge.mode == "robust" else ("overall",)
        return verdict("ok", dict.fromkeys(names, decided[0]), decided[1], [])

    answers: list[Answer] = []
    for attempt in range(judge.attempts if judge.mode == "robust" else 1):
        messages, codes = prompt(judge, case_of(dialogue), shown, ident, attempt)
        answers.append((yield _request(judge, messages, repeat)))
        if (refused := answers[-1].refused) is not None:
            return verdict("refused", {}, refused, answers)
        sides: Mapping[str, Outcome] = {codes[0]: first, codes[1]: "b" if first == "a" else "a"}
        if outcomes := READERS[judge.mode](answers[-1].text, sides):
            return verdict("ok", outcomes, answers[-1].text, answers)
    return verdict("unreadable", {}, answers[-1].text, answers)


def _request(judge: Judge, messages: tuple[Turn, ...], repeat: int) -> Request:
    return Request(
        judge.provider,
        judge.model,
        messages,
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        sample=repeat,
        json_reply=judge.mode == "robust",
    )


# ---------------------------------------------------------------- reading


def read_robust(text: str, sides: Mapping[str, Outcome]) -> dict[str, Any] | None:
    """Outcomes of the last JSON object in `text`, codes turned into sides; None when anything in it is unreadable.

    Unreadable: no object, an outcome missing or not on offer, a margin that is no whole number from 0 to 3.
    """
    offers = {**{code.casefold(): side for code, side in sides.items()}, "tie": "tie"}
    last: dict[str, Any] = [{}, *json_objects(text)][-1]
    outcomes = {n: offers.get(str(last.get(n)).strip().casefold()) for n in ("overall", *DIMENSIONS)}
    margin = last.get("margin")
    if None in outcomes.values() or type(margin) is not int or not 0 <= margin <= 3:
        return None
    return {**outcomes, "margin": margin}


def read_paper(text: str, sides: Mapping[str, Outcome]) -> dict[str, Any] | None:
    """The side named by the last "Winner: N" line; None when there is none. No ties, no dimensions."""
    named = re.findall(r"^\W*winner\W*(\w+)\W*$", text, re.IGNORECASE | re.MULTILINE)
    side = sides.get(named[-1]) if named else None
    return None if side is None else {"overall": side}


READERS = {"robust": read_robust, "paper": read_paper}
