"""Bytes that the stages to make will add to the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from empathy.specs import CheckpointSpec, Lora
from empathy.stages import Stage
from jobs.estimate.compute import WEIGHT_BYTES
from jobs.estimate.shapes import shape_of
from jobs.estimate.view import View

ADAPTER_BYTES = 4
"""PEFT keeps an adapter's weights in float32 whatever the base's precision."""
ROW_BYTES = {"dialogues": 300, "replies": 300, "examples": 450, "logprobs": 110, "verdicts": 360}
"""Bytes a row in zstd parquet, as measured on the store of the shipped demo."""


@dataclass(frozen=True)
class Storage:
    """`unknown` stages are in neither figure."""

    weights_bytes: float = 0.0
    rows_bytes: float = 0.0
    unknown: int = 0


def storage(to_make: Iterable[Stage], view: View) -> Storage:
    """What will be written; resumable checkpoints, which training removes again, and the ledger are left out."""
    weights = rows = 0.0
    unknown = 0
    for stage in to_make:
        size = _weights(stage) if stage.kind == "checkpoint" else _rows(stage, view)
        unknown += size is None
        if stage.kind == "checkpoint":
            weights += size or 0
        else:
            rows += size or 0
    return Storage(weights, rows, unknown)


def _weights(stage: Stage) -> float | None:
    """An adapter of r * (in + out) weights a matrix; all weights after full tuning; nothing for a base as found."""
    spec, shape = stage.spec, shape_of(stage)
    assert isinstance(spec, CheckpointSpec)
    if spec.objective is None:
        return 0.0
    if shape is None or (isinstance(spec.objective.tuning, Lora) and spec.objective.tuning.targets):
        return None
    if isinstance(spec.objective.tuning, Lora):
        return float(shape.adapter(spec.objective.tuning.rank) * ADAPTER_BYTES)
    return float(shape.parameters * WEIGHT_BYTES[spec.precision])


def _rows(stage: Stage, view: View) -> float | None:
    rows = view.rows(stage)
    return None if rows is None else float(rows * ROW_BYTES.get(stage.kind, 0))
