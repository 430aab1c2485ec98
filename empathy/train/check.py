"""What can be known to be wrong with a list of training stages before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from empathy.specs import CheckpointSpec, Dpo, ExamplesSpec, Full, LogprobsSpec, RandomBase, Sft
from empathy.stages import Stage
from empathy.store import Store
from empathy.train.bench import adapter_of
from empathy.train.placement import Placement, cut


def stages(listed: Sequence[Stage], store: Store, placement: Placement) -> None:
    """Raises ValueError for the first thing that cannot work, FileNotFoundError for an input that nobody has made."""
    known: set[str] = set()
    for stage in listed:
        if not store.done(stage):
            _stage(stage, placement)
            for name, needed in stage.inputs.items():
                if needed.key not in known and not store.done(needed):
                    raise FileNotFoundError(
                        f"{stage!r}: its input {name} ({needed!r}) is neither finished in {store.url} nor "
                        f"earlier in the list"
                    )
        known.add(stage.key)


def _stage(stage: Stage, placement: Placement) -> None:
    if isinstance(stage.spec, LogprobsSpec):
        _need(stage, "checkpoint", "examples")
    elif isinstance(stage.spec, CheckpointSpec):
        _checkpoint(stage, stage.spec, placement)
    else:
        raise ValueError(f"{stage!r}: a training session makes checkpoint and logprobs stages, not {stage.kind}")


def _checkpoint(stage: Stage, spec: CheckpointSpec, placement: Placement) -> None:
    if spec.base is None and spec.objective is None:
        raise ValueError(f"{stage!r}: give a `base` (a model as it is found) or an `objective` (a training)")
    if spec.base and isinstance(spec.objective, Dpo):
        raise ValueError(
            f"{stage!r}: a base is found, or raised with sft; make dpo a checkpoint of its own with input `base`"
        )
    if spec.base and spec.objective and not isinstance(spec.objective.tuning, Full):
        raise ValueError(
            f'{stage!r}: a base is raised with tuning = "full"; an adapter on it is a checkpoint of its own'
        )
    if isinstance(spec.base, RandomBase) and spec.max_length_tokens > spec.base.positions:
        raise ValueError(
            f"{stage!r}: max_length_tokens = {spec.max_length_tokens} is more than the model's positions = "
            f"{spec.base.positions}: lower the one "
            "or raise the other"
        )
    if spec.objective:
        _need(stage, "examples", *([] if spec.base else ["base"]))
        cut(spec.objective.optimiser.batch_examples, placement, placement.workers)
        _examples(stage, "sft" if isinstance(spec.objective, Sft) else "dpo")
    if isinstance(spec.objective, Dpo):
        _dpo(stage, spec, spec.objective)


def _dpo(stage: Stage, spec: CheckpointSpec, objective: Dpo) -> None:
    _need(stage, "reference")
    reference, start = stage.inputs["reference"], stage.inputs.get("policy", stage.inputs["base"])
    if reference.inputs["checkpoint"].key != start.key:
        raise ValueError(
            f"{stage!r}: its reference was scored by {reference.inputs['checkpoint']!r}, but it starts from "
            f"{start!r}: score the examples with that"
        )
    if reference.inputs["examples"].key != stage.inputs["examples"].key:
        raise ValueError(
            f"{stage!r}: its reference was scored over other examples than it trains on: score "
            f"{stage.inputs['examples']!r}"
        )
    assert isinstance(reference.spec, LogprobsSpec)
    if reference.spec.precision != spec.precision:
        raise ValueError(
            f"{stage!r}: precision = {spec.precision!r}, its reference's {reference.spec.precision!r}: give "
            f"both the same"
        )
    if "policy" in stage.inputs:
        policy = stage.inputs["policy"]
        assert isinstance(policy.spec, CheckpointSpec)
        if policy.inputs.get("base", policy).key != stage.inputs["base"].key:
            raise ValueError(f"{stage!r}: its policy {policy!r} stands on another base than {stage.inputs['base']!r}")
        if adapter_of(policy) != adapter_of(stage):
            raise ValueError(
                f"{stage!r}: tuning = {objective.tuning!r}, its policy's "
                f"{policy.spec.objective.tuning if policy.spec.objective else None!r}: "
                "dpo goes on with the policy's weights, so give both the same tuning"
            )


def _examples(stage: Stage, objective: str) -> None:
    spec = stage.inputs["examples"].spec
    if not isinstance(spec, ExamplesSpec) or spec.objective != objective:
        raise ValueError(f"{stage!r}: its input `examples` must be examples with objective = {objective!r}")


def _need(stage: Stage, *names: str) -> None:
    for name in names:
        if name not in stage.inputs:
            raise ValueError(f"{stage!r}: input `{name}` is missing; it has {sorted(stage.inputs) or 'none'}")
