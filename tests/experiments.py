"""Experiments that tests run: small, on dialogues that the test itself writes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from empathy import documents
from empathy.experiment import Experiment

TINY = """
name     = "tiny"
question = "Does it run?"
[data]
source    = {{ type = "jsonl", path = "{path}" }}
split     = {{ type = "random", test_fraction = 0.25 }}
part_rows = 8
[teacher]
provider        = "embedded"
model           = "rule-teacher-1"
unrated_is_good = true
[students.tiny]
init  = "random"
size  = {{ vocab = 400, hidden = 64, layers = 2, heads = 2, kv_heads = 1, intermediate = 64, positions = 256 }}
[students.tiny.raise]
source    = {{ type = "jsonl", path = "{raising}" }}
optimiser = {{ learning_rate = 2e-3, epochs = 1, batch_examples = 8 }}
[train]
precision         = "fp32"
max_length_tokens = 250
sft = {{ learning_rate = 1e-3, epochs = 1, batch_examples = 8 }}
dpo = {{ learning_rate = 1e-4, epochs = 1, batch_examples = 8 }}
[generate]
max_tokens = 16
[judge]
provider = "embedded"
models   = ["rule-judge-1"]
[[arms]]
method = "direct"
[grid]
regime = ["sft", "sft+dpo"]
"""

THINGS = [
    "my dog died",
    "I lost my job",
    "my sister won a prize",
    "my car broke down",
    "I failed the exam",
    "we moved house",
]
ANSWERS = [
    "Oh no, I am so sorry about that. What happened?",
    "That must feel heavy. I am here.",
    "Great, tell me more!",
    "Okay.",
]


def write_dialogues(path: Path, n: int, prefix: str = "d") -> Path:
    """`n` dialogues with human replies and ratings 1, 2, 3 in turn, all different."""
    rows = [
        {
            "id": f"{prefix}{i}",
            "group": f"g{i % 5}",
            "situation": f"{THINGS[i % 6]} in week {i} of {prefix}",
            "turns": [
                {
                    "role": "user",
                    "content": f"Last week {THINGS[i % 6]}, number {i} of {prefix}, and I keep thinking of it.",
                }
            ],
            "human_reply": f"{ANSWERS[i % 4]} It was number {i} for {prefix}.",
            "ratings": {"human": i % 3 + 1},
        }
        for i in range(n)
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return path


def tiny(folder: Path, n: int = 24, **changes: Any) -> Experiment:
    """The tiny experiment on `n` dialogues in `folder`; `changes` replace values, "train.sft.epochs" style with "__"
    for "."."""
    folder.mkdir(parents=True, exist_ok=True)
    path, raising = write_dialogues(folder / "dialogues.jsonl", n), write_dialogues(folder / "raising.jsonl", 16, "r")
    data = tomllib.loads(TINY.format(path=path, raising=raising))
    for name, value in changes.items():
        *tables, last = name.split("__")
        table = data
        for t in tables:
            table = table[t]
        table[last] = value
    return documents.validate(Experiment, data, "tiny.toml")


def tiny_file(folder: Path, n: int = 24) -> Path:
    """The same as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path, raising = write_dialogues(folder / "dialogues.jsonl", n), write_dialogues(folder / "raising.jsonl", 16, "r")
    file = folder / "tiny.toml"
    file.write_text(TINY.format(path=path, raising=raising))
    return file
