"""A small chain of training stages on invented sentences: base, SFT, reference, DPO. The model has 0.1M parameters."""

from __future__ import annotations

import random
from pathlib import Path

from empathy import templates
from empathy.records import Demonstration, Dialogue, Preference, Turn
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    Full,
    LogprobsSpec,
    Lora,
    Optimiser,
    RandomBase,
    RandomSplit,
    Sft,
)
from empathy.stages import Stage
from empathy.store import Store

WORDS = [
    "i",
    "feel",
    "so",
    "sad",
    "about",
    "my",
    "dog",
    "because",
    "he",
    "was",
    "old",
    "and",
    "we",
    "loved",
    "him",
    "very",
    "much",
    "but",
    "my",
    "friend",
    "said",
    "that",
    "time",
    "will",
    "help",
    "you",
    "to",
    "heal",
    "and",
    "that",
    "is",
    "what",
    "i",
    "want",
    "to",
    "hear",
    "now",
    "thank",
    "you",
    "for",
    "being",
    "here",
    "with",
    "me",
    "today",
    "it",
    "must",
    "be",
    "hard",
]
BASE = RandomBase(vocab=400, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, positions=256)
BATCH = 8


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 24))).capitalize() + "."


def demonstrations(number: int, seed: int) -> list[Demonstration]:
    rng = random.Random(seed)
    asked = [Dialogue(f"d{seed}-{i}", "g", (Turn("user", sentence(rng)),)) for i in range(number)]
    return [Demonstration.of(d, d.turns, sentence(rng), "human") for d in asked]


def preferences(number: int, seed: int) -> list[Preference]:
    rng = random.Random(seed)
    asked = [Dialogue(f"d{seed}-{i}", "g", (Turn("user", sentence(rng)),)) for i in range(number)]
    return [Preference.of(d, d.turns, (sentence(rng), "teacher"), (sentence(rng), "human")) for d in asked]


def examples(store: Store, objective: str, records: list, part_rows: int = 16) -> Stage:
    """A finished `examples` stage that holds `records`."""
    identity = f"{objective} {[r.id for r in records]}"
    dialogues = Stage(DialoguesSpec(source="jsonl", digest=identity, split=RandomSplit()))
    stage = Stage(ExamplesSpec(method=Direct(), objective=objective), {"dialogues": dialogues}, label=objective)
    if not store.done(stage):
        writer = store.writer(stage)
        for k in range(0, len(records), part_rows):
            writer.write_records(k // part_rows, records[k : k + part_rows], type(records[0]))
        writer.commit()
    return stage


def optimiser(**given) -> Optimiser:
    return Optimiser(**{"learning_rate": 3e-3, "epochs": 1, "batch_examples": BATCH} | given)


def raised(store: Store, **given) -> Stage:
    """A base: random, then SFT on 16 demonstrations."""
    spec = CheckpointSpec(
        base=BASE,
        objective=Sft(optimiser=optimiser(), tuning=Full()),
        template=templates.load("plain"),
        **{"precision": "fp32", "max_length_tokens": 256} | given,
    )
    return Stage(spec, {"examples": examples(store, "sft", demonstrations(16, 1))}, label="base")


def tuned(objective: Sft | Dpo, inputs: dict[str, Stage], **given) -> Stage:
    spec = CheckpointSpec(objective=objective, **{"precision": "fp32", "max_length_tokens": 256} | given)
    return Stage(spec, inputs, label=objective.type)


def scored(checkpoint: Stage, over: Stage) -> Stage:
    return Stage(
        LogprobsSpec(precision="fp32", max_length_tokens=256),
        {"checkpoint": checkpoint, "examples": over},
        label="scores",
    )


def chain(store: Store, tuning: Lora | Full | None = None, number: int = 24, **given) -> list[Stage]:
    """[base, sft, reference, dpo after sft]."""
    tuning = tuning or Lora()
    base = raised(store)
    shown, pairs = examples(store, "sft", demonstrations(number, 2)), examples(store, "dpo", preferences(number, 3))
    sft = tuned(Sft(optimiser=optimiser(**given), tuning=tuning), {"base": base, "examples": shown})
    reference = scored(sft, pairs)
    dpo = tuned(
        Dpo(optimiser=optimiser(**given), tuning=tuning),
        {"base": base, "policy": sft, "examples": pairs, "reference": reference},
    )
    return [base, sft, reference, dpo]


def side_by_side(store: Store) -> list[Stage]:
    """A base, and six students of it who learn from different sentences."""
    base = raised(store)
    sets = [examples(store, "sft", demonstrations(24, seed)) for seed in range(2, 8)]
    objective = Sft(optimiser=optimiser(epochs=30), tuning=Lora())
    return [base, *(tuned(objective, {"base": base, "examples": shown}) for shown in sets)]


def failing(store: Store) -> list[Stage]:
    """A base, a training whose loss is no number, one without an example that is short enough, and a sound one."""
    base, shown = raised(store), examples(store, "sft", demonstrations(24, 2))
    inputs = {"base": base, "examples": shown}
    wild = tuned(Sft(optimiser=optimiser(learning_rate=1e30, epochs=2, schedule="constant"), tuning=Full()), inputs)
    none = tuned(Sft(optimiser=optimiser(), tuning=Lora()), inputs, max_length_tokens=8)
    return [base, wild, none, tuned(Sft(optimiser=optimiser(), tuning=Lora()), inputs)]


def losses(store: Store, stage: Stage) -> list[float]:
    return list(store.get(stage).meta["series"]["loss"])


def weights(store: Store, stage: Stage) -> dict[str, str]:
    """File name -> sha256 of a checkpoint's safetensors."""
    return {name: file.sha256 for name, file in store.get(stage).files.items() if name.endswith(".safetensors")}


def copy_of(store: Store, to: Path) -> Store:
    """Another store with the same artifacts."""
    import shutil

    shutil.copytree(store.url, to)
    return Store.open(str(to))
