"""Finished weights: written as safetensors, read again, and committed with tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from empathy.files import FULL
from empathy.stages import Stage
from empathy.train.bench import Bench
from empathy.train.tokens import Renderer

PACKAGES = ("torch", "transformers", "trl", "peft", "deepspeed", "tokenizers")


@cache
def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def write_weights(trainer: Any, folder: Path, base_name: str) -> None:
    """Write the trained adapter or model under `folder`. Every rank calls this; rank 0 writes."""
    from peft import PeftModel

    lora = isinstance(trainer.model, PeftModel)
    state = (
        trainer.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=lora)
        if _zero3(trainer)
        else None
    )
    if trainer.is_world_process_zero():
        model = trainer.model
        if lora:
            model.peft_config["default"].base_model_name_or_path = base_name
        model.save_pretrained(folder, state_dict=state, **({"save_embedding_layers": False} if lora else {}))
        (folder / "README.md").unlink(missing_ok=True)


def _zero3(trainer: Any) -> bool:
    return bool(trainer.deepspeed.zero_optimization_stage() == 3)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of all safetensors in `folder`."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as tensors:
            found.update({key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()})  # noqa: SIM118
    return found


def reread_adapter(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read a saved adapter again. Raises ValueError unless it has every key, the right shapes, and a B that is not
    zero.
    """
    from safetensors import safe_open

    found = shapes(folder)
    if found != dict(expected):
        wrong = sorted(set(found.items()) ^ set(expected.items()))[:3]
        raise ValueError(
            f"the adapter that was saved has not the keys and shapes that were trained, among others {wrong}"
        )
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
        b_norms = [float(tensors.get_tensor(key).float().norm()) for key in found if ".lora_B." in key]
    alive = sum(norm > 0 for norm in b_norms)
    if not alive:
        raise ValueError(
            "every B of the adapter that was saved is zero: it would answer as its base; was it trained at all?"
        )
    return {
        "keys": len(found),
        "b_matrices": len(b_norms),
        "b_not_zero": alive,
        "b_norm": sum(n * n for n in b_norms) ** 0.5,
    }


def reread_model(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read saved full weights again. Raises ValueError for a shape that was not trained, or a missing key (tied ones
    excepted).
    """
    found = shapes(folder)
    wrong = sorted(k for k in found if found[k] != expected.get(k))
    if wrong or not found:
        raise ValueError(
            f"the model that was saved has not the shapes that were trained: {wrong[:3] or 'it holds no weights'}"
        )
    return {"keys": len(found)}


def commit(stage: Stage, bench: Bench, renderer: Renderer, weights: Path | None, meta: Mapping[str, Any]) -> None:
    """Commit a checkpoint with what must travel with it. Rank 0 calls this. `weights`: a folder named "model" or
    "adapter". Raises ValueError where it does not fit into the store: trained again, it would not fit again.
    """
    try:
        _commit(stage, bench, renderer, weights, meta)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ValueError(f"{error}: make room there") from error


def _commit(stage: Stage, bench: Bench, renderer: Renderer, weights: Path | None, meta: Mapping[str, Any]) -> None:
    writer = bench.writer(stage)
    tokenizer_folder = bench.scratch / f"tokenizer-{stage.key}"
    renderer.tokenizer.save_pretrained(tokenizer_folder)
    stops = sorted(renderer.stop_ids)
    generation = json.dumps({"eos_token_id": stops, "pad_token_id": renderer.tokenizer.pad_token_id}, indent=1).encode()
    if weights is not None:
        (weights / "generation_config.json").write_bytes(generation)
        writer.add_folder(weights, f"{weights.name}/")
    writer.add_folder(tokenizer_folder, "tokenizer/")
    writer.add_file("template.jinja", renderer.template.encode())
    writer.commit(
        meta={**meta, "stop_ids": stops, "versions": versions()}, made={"placement": bench.placement.as_json()}
    )
