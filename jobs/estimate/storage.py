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
    """`unknown_weights` and `unknown_rows` are the stages that are not in the figures."""

    weights_bytes: float = 0.0
    rows_bytes: float = 0.0
    unknown_weights: int = 0
    unknown_rows: int = 0


def storage(to_make: Iterable[Stage], view: View) -> Storage:
    """What will be written; resumable checkpoints, which training removes again, and the ledger are left out."""
    to_make = list(to_make)
    weights = [_weights(stage) for stage in to_make if stage.kind == "checkpoint"]
    rows = [_rows(stage, view) for stage in to_make if stage.kind != "checkpoint"]
    return Storage(_sum(weights), _sum(rows), weights.count(None), rows.count(None))


def _sum(sizes: Iterable[float | None]) -> float:
    return sum(size for size in sizes if size is not None)


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
