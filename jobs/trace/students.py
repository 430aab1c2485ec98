"""What bases and arms make of one test dialogue: the likelihood of the held-out replies, their answers, the
verdicts."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator

from empathy.lower import Cell, Lowered
from empathy.records import Demonstration, Logprob, Preference, Reply, Score, Verdict
from empathy.report.cells import name_of
from empathy.specs import Rubric, VerdictsSpec
from empathy.stages import Stage
from jobs.trace.life import FEW, WIDTH, Life, reply_lines, under, wrapped

SHOWN = {"a": "shown first", "b": "shown second"}
"""By the side that a verdict showed first; the arm is side "a"."""


def students(life: Life, lowered: Lowered) -> Iterator[str]:
    yield "STUDENTS"
    if life.dialogue.split != "test":
        yield "  asked about test dialogues alone"
        return
    inputs, names = lowered.report.inputs, lowered.report.locator
    for slot in {name.partition(":")[0]: None for name in inputs if name.startswith("base")}:
        yield from _answered(life, names[slot], inputs[f"{slot}:replies"])
        yield from _heldout(life, lowered, slot)
        yield from _verdicts(life, lowered, slot)
    for cell in lowered.cells:
        yield ""
        yield from _arm(life, lowered, cell)


def _arm(life: Life, lowered: Lowered, cell: Cell) -> Iterator[str]:
    yield from _answered(life, cell.name, cell.replies)
    yield from _heldout(life, lowered, cell.slot)
    yield from _verdicts(life, lowered, cell.slot)


def _answered(life: Life, name: str, stage: Stage) -> Iterator[str]:
    replies = life.of(stage, Reply)
    if replies is None:
        yield f"  {name}: not made yet"
    for reply in replies or ():
        yield from reply_lines(name, reply)


def _of(lowered: Lowered, slot: str) -> Iterator[tuple[list[str], Stage]]:
    """The report's inputs of a slot: what stands after it in their names, in words."""
    for name, stage in lowered.report.inputs.items():
        if name.startswith(f"{slot}:"):
            yield name.split(":")[1:], stage


# ---------------------------------------------------------------- held-out likelihood


def _heldout(life: Life, lowered: Lowered, slot: str) -> Iterator[str]:
    """The log-probability of each held-out reply and pair of this dialogue; a base is measured on all lessons."""
    lessons: dict[str, list[tuple[str, Stage]]] = defaultdict(list)
    for words, stage in _of(lowered, slot):
        if words[0] in ("nll", "pairs"):
            lessons[words[1]].append((words[0], stage))
    for lesson, scored in lessons.items():
        of = "" if len(lessons) == 1 else f" ({name_of(lesson, lowered.report.locator)})"
        for what, stage in scored:
            lines = _nll(life, stage) if what == "nll" else _pairs(life, stage)
            for line in lines:
                yield from wrapped(f"held-out {'reply' if what == 'nll' else 'pair'}{of}", line, indent=4)


def _nll(life: Life, stage: Stage) -> Iterator[str]:
    examples = life.of(stage.inputs["examples"], Demonstration) or []
    found = life.logprobs(stage, {e.id for e in examples}) if examples else {}
    for e in examples:
        yield _not_there(found) or _nats(found.get((e.id, "reply")) if found else None)


def _pairs(life: Life, stage: Stage) -> Iterator[str]:
    examples = life.of(stage.inputs["examples"], Preference) or []
    found = life.logprobs(stage, {e.id for e in examples}) if examples else {}
    for e in examples:
        chosen, rejected = ((found or {}).get((e.id, side)) for side in ("chosen", "rejected"))
        said = f"{e.chosen_source} {_nats(chosen)}, {e.rejected_source} {_nats(rejected)}"
        yield _not_there(found) or said + (f": {_preferred(chosen, rejected)}" if chosen and rejected else "")


def _not_there(found: object) -> str:
    return "not made yet" if found is None else ""


def _nats(x: Logprob | None) -> str:
    if x is None:
        return "not scored (too long)"
    return f"{x.logprob_nats:.2f} nats in {x.tokens} tokens ({x.logprob_nats / x.tokens:.3f} a token)"


def _preferred(chosen: Logprob, rejected: Logprob) -> str:
    summed = chosen.logprob_nats > rejected.logprob_nats
    per_token = chosen.logprob_nats / chosen.tokens > rejected.logprob_nats / rejected.tokens
    return f"{'right' if summed else 'wrong'} summed, {'right' if per_token else 'wrong'} per token"


# ---------------------------------------------------------------- verdicts


def _verdicts(life: Life, lowered: Lowered, slot: str) -> Iterator[str]:
    """A line a judge: against whom, and how it ended in each order. What judges said is quoted for few arms alone."""
    told: dict[str, list[str]] = defaultdict(list)
    quoted: list[str] = []
    for what, stage in _of(lowered, slot):
        if isinstance(stage.spec, VerdictsSpec):
            opponent = ":".join(x for x in what[1:] if not x.startswith("judge"))
            whom = f"against {name_of(opponent, lowered.report.locator)}" if opponent else "alone"
            said, raw = _judged(life, stage, stage.spec)
            told[stage.spec.judge.model].append(f"{whom}: {said}")
            quoted += [f"{stage.spec.judge.model} {whom}: {' '.join(text.split())}" for text in raw]
    for model, ends in told.items():
        yield from wrapped(model, "; ".join(ends), indent=4)
    if len(lowered.cells) <= FEW:
        yield from (line for text in quoted for line in textwrap.wrap(text[:400], WIDTH, **under(6)))


def _judged(life: Life, stage: Stage, spec: VerdictsSpec) -> tuple[str, list[str]]:
    """How it ended, and what the judge wrote."""
    if isinstance(spec.judge, Rubric):
        scores = life.of(stage, Score)
        ends = None if scores is None else [_score(s) for s in scores]
        raw = [text for s in scores or () for text in s.raw]
    else:
        verdicts = life.of(stage, Verdict)
        in_order = sorted(verdicts or (), key=lambda v: (v.repeat, v.first))
        ends = None if verdicts is None else [f"{_outcome(v)} {SHOWN[v.first]}" for v in in_order]
        raw = [v.raw for v in in_order]
    return "not made yet" if ends is None else ", ".join(ends) or "not compared (a reply is missing in the data)", raw


def _outcome(v: Verdict) -> str:
    return {"a": "wins", "b": "loses", "tie": "ties"}.get(v.overall or "", v.status)


def _score(s: Score) -> str:
    return s.status if s.overall is None else f"{s.overall:.2f} of 5"
