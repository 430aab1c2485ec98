"""What the screens and the sources dropped: from every training set of every arm, and from the raw rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from empathy.report.cells import Cells
from empathy.specs import ExamplesSpec
from empathy.stages import Stage, walk
from empathy.store import Store


def training_sets(cells: Cells, store: Store) -> list[dict[str, Any]]:
    """For each arm the sets that it learned from, in order: replies selected, examples made, drops by reason.

    A set that the store no longer holds is left out.
    """
    found = []
    for arm in cells.arms:
        for examples in learned_from(arm.checkpoint):
            artifact = store.find(examples.kind, examples.key)
            if artifact is not None:
                meta = artifact.meta
                found.append(
                    {
                        "slot": arm.slot,
                        "objective": artifact.identity["spec"]["objective"],
                        "selected": meta.get("candidates"),
                        "examples": artifact.rows,
                        "dropped": dict(meta.get("dropped", {})),
                        "key": artifact.key,
                    }
                )
    return found


def learned_from(checkpoint: Stage | None) -> Iterator[Stage]:
    """The sets of the steps that lead from the base to a student."""
    if checkpoint is not None and "base" in checkpoint.inputs:
        yield from learned_from(checkpoint.inputs.get("policy"))
        if "examples" in checkpoint.inputs:
            yield checkpoint.inputs["examples"]


def screens(report: Stage) -> dict[str, tuple[str, ...]]:
    """Key of each training set -> the screens that looked at its replies, whatever they caught; none where only what
    people wrote is learned."""
    from empathy.candidates import Choice  # polars is slow to load

    return {
        stage.key: Choice(stage.spec).screens
        for stage in walk([report])
        if isinstance(stage.spec, ExamplesSpec) and stage.spec.purpose == "train"
    }


def sources(report: Stage, store: Store) -> list[dict[str, Any]]:
    """For each source below the report its rows, the dialogues on each side, and the rows dropped by reason."""
    found = []
    for stage in walk([report]):
        artifact = store.find(stage.kind, stage.key) if stage.kind == "dialogues" else None
        if artifact is not None:
            meta = artifact.meta
            facts = {"rows": meta.get("rows_read"), "sides": meta.get("sides", {}), "dropped": meta.get("dropped", {})}
            found.append({"source": artifact.identity["spec"]["source"], "key": stage.key, **facts})
    return found
