"""The examples stage: dialogues and replies, joined by id, become what a student learns from or is measured on.

Part k concerns the same dialogues as part k of the inputs, so one part of each is in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from empathy.methods import Case, Said, method_of
from empathy.records import HUMAN, Demonstration, Dialogue, Preference, Reply, Turn
from empathy.screens import screen
from empathy.specs import ExamplesSpec
from empathy.stages import Stage
from empathy.twins import Held, leaks

if TYPE_CHECKING:  # pyarrow is slow to load
    from empathy.store import Store, Writer

Example = Demonstration | Preference


@dataclass
class Tally:
    """Dialogues that the method selects, and why some of them give no example."""

    candidates: int = 0
    drops: Counter[str] = field(default_factory=Counter)


def make(stage: Stage, store: Store, writer: Writer) -> None:
    """Write and commit. The artifact's `meta` holds `candidates` (dialogues the method selects) and `dropped` by
    reason.

    Raises ValueError when more than `max_dropped` of the candidates are dropped, when no example is left, when a
    test dialogue is inside a training set, and when the method needs a rating that nobody gave.
    """
    spec = stage.spec
    assert isinstance(spec, ExamplesSpec)
    dialogues = store.get(stage.inputs["dialogues"])
    training = spec.purpose == "train"
    held = Held(d for d in dialogues.read(Dialogue) if training and d.split == "test")
    total, rows = Tally(), 0
    for part in range(len(dialogues.parts)):
        tally = Tally()
        learned, initial = (_replies(stage, store, name, part) for name in ("replies", "initial"))
        here = (d for d in dialogues.read(Dialogue, part) if d.split == spec.split)
        made = [e for d in here for e in examples(spec, d, learned[d.id], initial[d.id], tally)]
        _refuse(leaks(made, held))
        writer.write_records(part, made, Demonstration if spec.objective == "sft" else Preference, tally.drops)
        total = Tally(total.candidates + tally.candidates, total.drops + tally.drops)
        rows += len(made)
    _check(spec, total, rows)
    writer.commit({"candidates": total.candidates, "dropped": dict(total.drops)})


def examples(
    spec: ExamplesSpec, dialogue: Dialogue, learned: list[Reply], initial: list[Reply], tally: Tally
) -> list[Example]:
    """What one dialogue gives, each example once, however many samples of the learned reply there are."""
    first = initial[0] if initial else None
    cases = [Case(dialogue, reply, first) for reply in learned] or [Case(dialogue, None, first)]
    return list({e.id: e for case in cases for e in _of_case(spec, case, tally)}.values())


def _refuse(ids: list[str]) -> None:
    if ids:
        raise ValueError(
            f"test dialogues inside training: {len(ids)} training dialogues are also on the test side, for example "
            f'{", ".join(ids[:5])}; split by group (data.split = "group") or remove the repetitions from the data'
        )


def _replies(stage: Stage, store: Store, name: str, part: int) -> dict[str, list[Reply]]:
    """Replies of one input by dialogue, in the order of samples; empty when the stage has no such input."""
    found: dict[str, list[Reply]] = defaultdict(list)
    if name in stage.inputs:
        for reply in sorted(store.get(stage.inputs[name]).read(Reply, part), key=lambda r: r.sample):
            found[reply.dialogue_id].append(reply)
    return found


def _of_case(spec: ExamplesSpec, case: Case, tally: Tally) -> Iterator[Example]:
    method = method_of(spec.method)
    sft = spec.objective == "sft"
    said = method.teaches(spec.method, spec.purpose) if sft else method.pair(spec.method)
    selected = method.selects(spec.method, spec.objective, spec.purpose, case)
    if selected is False:
        return
    tally.candidates += 1
    reason = selected if isinstance(selected, str) else _unusable(spec, case, said)
    if reason:
        tally.drops[reason] += 1
        return
    messages = _messages(spec, case.dialogue)
    texts = [(text, source) for who, source in said if (text := case.text(who)) is not None]
    if sft:
        yield from (Demonstration.of(case.dialogue, messages, text, source) for text, source in texts)
    else:
        yield Preference.of(case.dialogue, messages, *texts)


def _unusable(spec: ExamplesSpec, case: Case, said: Iterable[Said]) -> str | None:
    """Why a selected dialogue gives no example: a reply is missing, was dropped, or is caught by a screen."""
    texts = []
    for who, _ in said:
        text = case.text(who)
        if text is None:
            reply = None if who == HUMAN else case.reply(who)
            return reply.dropped.partition(":")[0] if reply and reply.dropped else f"no_{who}_reply"
        caught = None if who == HUMAN else screen(text, case.dialogue, spec.screens)
        if caught:
            return caught
        texts.append(text)
    return "chosen_is_rejected" if spec.objective == "dpo" and texts[0] == texts[1] else None


def _messages(spec: ExamplesSpec, dialogue: Dialogue) -> tuple[Turn, ...]:
    """What the student is shown: the dialogue alone, after a system message where the experiment gives one."""
    return ((Turn("system", spec.system),) if spec.system else ()) + dialogue.turns


def _check(spec: ExamplesSpec, total: Tally, rows: int) -> None:
    dropped = total.drops.total()
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(total.drops.items())) or "none dropped"
    what = f"{spec.objective} examples of method {spec.method.type!r} ({spec.split}, {spec.purpose})"
    if dropped > spec.max_dropped * total.candidates:
        raise ValueError(
            f"max_dropped = {spec.max_dropped}: {dropped} of {total.candidates} {what} were dropped ({reasons}); "
            "look at the replies, choose other screens, or raise data.max_dropped"
        )
    if not rows:
        raise ValueError(
            f"no {what}: the method selects {total.candidates} dialogues ({reasons}); "
            "check the split, the ratings, and that the replies are of the same dialogues"
        )
