"""The keys of the shipped experiments, pinned: a change here remakes what users have in their stores.

When that is meant, `python -m tests.golden.test_keys` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from empathy import experiment
from empathy.lower import lower
from empathy.stages import walk

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).with_name("keys.json")
FILES = ["jobs/experiments/demo.toml"]


def keys(file: str) -> dict[str, str]:
    """kind/key -> label of every stage, inputs first."""
    return {f"{s.kind}/{s.key}": s.label for s in walk([lower(experiment.load(ROOT / file)).report])}


def test_shipped_experiments_have_their_pinned_keys() -> None:
    pinned = json.loads(PINNED.read_text())
    assert sorted(pinned) == sorted(FILES)
    for file in FILES:
        assert keys(file) == pinned[file]


if __name__ == "__main__":
    PINNED.write_text(json.dumps({file: keys(file) for file in FILES}, indent=1) + "\n")
