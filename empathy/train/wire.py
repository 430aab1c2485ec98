"""Stages as JSON, to hand them to other processes. A stage that arrives has the key it left with, or is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from empathy.specs import KINDS
from empathy.stages import Stage, walk


def dump(stages: Sequence[Stage]) -> str:
    """JSON of `stages` and everything they stand on."""
    known = {
        s.key: {
            "kind": s.kind,
            "revision": s.spec.revision,
            "spec": s.spec.model_dump(mode="json"),
            "inputs": {name: i.key for name, i in s.inputs.items()},
            "locator": dict(s.locator),
            "label": s.label,
        }
        for s in walk(stages)
    }
    return json.dumps({"stages": known, "targets": [s.key for s in stages]})


def load(text: str) -> list[Stage]:
    """The stages that `dump` was given. Raises ValueError when one has another key here (another version of the code)."""
    data = json.loads(text)
    made: dict[str, Stage] = {}
    for key, item in data["stages"].items():  # walk() puts inputs before their users
        made[key] = stage = _stage(item, made)
        if stage.key != key:
            raise ValueError(
                f"stage {stage.label or key!r} has key {stage.key} here and {key} where it was planned: plan and train with the same "
                "version of this package"
            )
    return [made[key] for key in data["targets"]]


def _stage(item: dict[str, Any], made: dict[str, Stage]) -> Stage:
    spec = KINDS[item["kind"]].model_validate(item["spec"])
    inputs = {name: made[key] for name, key in item["inputs"].items()}
    return Stage(spec, inputs, item["locator"], item["label"])
