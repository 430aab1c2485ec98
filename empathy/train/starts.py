"""The weights a training starts from."""

from __future__ import annotations

from typing import Any

from empathy.specs import Lora, RandomBase
from empathy.stages import Stage
from empathy.train.base import random_model
from empathy.train.bench import Bench, adapter_of, base_of, checkpoint_spec
from empathy.train.tokens import Renderer


def lora_config(lora: Lora) -> Any:
    """PEFT's; targets are all linear layers but the head unless the spec names some."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )


def starting_model(stage: Stage, bench: Bench, renderer: Renderer) -> Any:
    """The model to train, without adapters: a base for LoRA; for full tuning the policy's weights, the base's, or
    random ones.
    """
    spec = checkpoint_spec(stage)
    if spec.base:
        if isinstance(spec.base, RandomBase):
            return random_model(spec.base, renderer.tokenizer, spec.seed, spec.precision)
        return _pointed_model(stage, spec.precision)
    if adapter_of(stage):
        resident = bench.placement.zero_stage < 3  # ZeRO-3 cuts the base itself to pieces
        return (bench.base_model if resident else bench.fresh_model)(base_of(stage), spec.precision)
    return bench.fresh_model(stage.inputs.get("policy", base_of(stage)), spec.precision)


def _pointed_model(stage: Stage, precision: str) -> Any:
    from transformers import AutoModelForCausalLM

    from empathy.specs import HubBase
    from empathy.train.bench import pointed, torch_dtype

    base = checkpoint_spec(stage).base
    assert isinstance(base, HubBase)
    name, revision = pointed(stage, base)
    return AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=torch_dtype(precision), trust_remote_code=False
    )


def load_policy_adapter(model: Any, policy: Stage, bench: Bench) -> None:
    """Put the SFT adapter's weights into the trainable adapter: DPO goes on from there."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(bench.folder(policy) / "adapter" / "adapter_model.safetensors")
    result = set_peft_model_state_dict(model, weights)
    left = [key for key in result.missing_keys if "lora_" in key]
    if left or result.unexpected_keys:
        raise ValueError(
            f"{policy!r} does not fit the adapter that is to go on from it (e.g. "
            f"{(left + list(result.unexpected_keys))[0]!r}): give both "
            "the same base and the same lora"
        )
