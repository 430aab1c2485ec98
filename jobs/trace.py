"""One dialogue's whole life in an experiment: row, replies, examples, scores, verdicts."""

from __future__ import annotations

from collections.abc import Iterator

from cluster import profile as profiles
from empathy import experiment
from empathy.lower import lower
from empathy.records import Demonstration, Dialogue, Logprob, Preference, Reply, Verdict
from empathy.specs import ExamplesSpec, RepliesSpec, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store


def _dialogue(record: Dialogue) -> Iterator[str]:
    yield f"split {record.split}, group {record.group}, emotion {record.emotion}, ratings {record.ratings}"
    yield from (f"{t.role}: {t.content}" for t in record.turns)
    if record.human_reply:
        yield f"human reply: {record.human_reply}"


def _reply(record: Reply) -> Iterator[str]:
    if record.dropped:
        yield f"dropped: {record.dropped}"
    yield f"{record.text}  ({record.finish_reason}, {record.tokens_out} tokens)"


def _example(record: Demonstration | Preference) -> Iterator[str]:
    if isinstance(record, Demonstration):
        yield f"learns ({record.source}): {record.reply}"
    else:
        yield f"chosen ({record.chosen_source}): {record.chosen}"
        yield f"rejected ({record.rejected_source}): {record.rejected}"


def _verdict(record: Verdict) -> Iterator[str]:
    yield f"{record.judge}, {record.first} shown first: {record.status} {record.overall}  {record.raw[:300]}"


def _lines(stage: Stage, store: Store, dialogue: str, examples: set[str]) -> Iterator[str]:
    artifact = store.get(stage)
    if stage.kind == "dialogues":
        yield from (line for d in artifact.read(Dialogue) if d.id == dialogue for line in _dialogue(d))
    elif isinstance(stage.spec, RepliesSpec):
        yield from (line for r in artifact.read(Reply) if r.dialogue_id == dialogue for line in _reply(r))
    elif isinstance(stage.spec, ExamplesSpec):
        cls: type[Demonstration | Preference] = Demonstration if stage.spec.objective == "sft" else Preference
        for record in artifact.read(cls):
            if record.dialogue_id == dialogue:
                examples.add(record.id)
                yield from _example(record)
    elif stage.kind == "logprobs":
        for score in artifact.read(Logprob):
            if score.example_id in examples:
                yield f"{score.side}: {score.logprob_nats:.2f} nats over {score.tokens} tokens"
    elif isinstance(stage.spec, VerdictsSpec):
        yield from (line for v in artifact.read(Verdict) if v.dialogue_id == dialogue for line in _verdict(v))


def trace(dialogue: str, file: str, on: str | None, store_url: str | None) -> int:
    """Print every stage in which the dialogue occurs. Raises ValueError when it occurs in none that is made."""
    store = profiles.load(on, store_url).open_store()
    lowered = lower(experiment.load(file))
    examples: set[str] = set()
    found = False
    for stage in walk([lowered.report]):
        lines = list(_lines(stage, store, dialogue, examples)) if store.done(stage) else []
        if lines:
            found = True
            print(f"\n{stage.kind}/{stage.key[:12]}  {stage.label}")
            print("\n".join(f"  {line}" for line in lines))
    if not found:
        raise ValueError(
            f"dialogue = {dialogue!r}: in no finished stage of {file} in {store.url}; "
            "look at the ids of the dialogues stage"
        )
    return 0
