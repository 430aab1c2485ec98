"""LoRA adapters as files: what is refused before an engine loads them, and the zero adapter that stands for the base.

vLLM answers with the base's weights, HTTP 200, when an adapter's keys do not match: keys, shapes and values are read
first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the max_lora_rank values that vLLM 0.29 accepts
BASE_RECORD = "base.json"  # optional, beside an adapter: {"weights_sha256": "..."} of the base it was trained on
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """An adapter that passed `read_adapter`. shapes: module -> (in features, out features)."""

    name: str
    folder: Path
    rank: int
    shapes: dict[str, tuple[int, int]]


def refuse_pickles(folder: Path) -> None:
    """Raises ValueError when a file in `folder` could run code on being loaded."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if found:
        raise ValueError(f"{folder}: {', '.join(found)} may hold pickled code; save safetensors and remove it")


def weights_sha256(folder: Path) -> str:
    """Hash of a model folder's safetensors files (names and contents)."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        there = path.stat()
        digest.update(f"{path.name} {_file_sha256(path, there.st_size, there.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of the file as it was then: every adapter of a base asks for the base's, and that may be 100 GB."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_base(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the base's weights by key. Raises ValueError for a folder that is no safe model."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"base = {folder}: there is no config.json; give the folder of a Hugging Face model")
    refuse_pickles(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"base = {folder}: there are no .safetensors weights")
    return {key: shape for file in files for key, shape in _shapes(file).items()}


def read_adapter(name: str, folder: Path, base: Path) -> Adapter:
    """Read and check one adapter against its base.

    Raises ValueError, naming the adapter: no adapter there, pickled files, an unsupported kind, a rank that vLLM does
    not take, another base, keys or shapes that the base has not, a B of zeros (it would change nothing).
    """
    try:
        base_shapes = check_base(base)
        refuse_pickles(folder)
        config = _config(folder)
        _check_recorded_base(folder, base)
        shapes = _module_shapes(_shapes(folder / "adapter_model.safetensors"), base_shapes, int(config["r"]))
        _check_not_zero(folder / "adapter_model.safetensors")
    except (ValueError, FileNotFoundError) as error:  # one place that says which of the adapters it was
        raise ValueError(f"adapter {name!r} ({folder}): {error}") from error
    return Adapter(name, folder, int(config["r"]), shapes)


def max_rank(ranks: Mapping[str, int]) -> int:
    """The least max_lora_rank of vLLM that holds adapters of these ranks, by name. Raises ValueError above vLLM's
    greatest."""
    widest = max(ranks, key=lambda name: ranks[name])
    for rank in RANKS:
        if ranks[widest] <= rank:
            return rank
    raise ValueError(f"adapter {widest!r}: rank {ranks[widest]} is over vLLM's greatest, {RANKS[-1]}")


def write_zero_adapter(adapters: Iterable[Adapter], folder: Path) -> Path:
    """An adapter that changes nothing, on every module that any of `adapters` targets: base requests go through it.

    On a CPU, vLLM 0.29 answers base requests that share a batch with adapter requests from the last adapter's weights.
    """
    import torch
    from safetensors.torch import save_file

    adapters = list(adapters)
    rank = min(adapter.rank for adapter in adapters)
    shapes = {module: shape for adapter in adapters for module, shape in adapter.shapes.items()}
    tensors = {}
    for module, (features_in, features_out) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.zeros(rank, features_in)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.zeros(features_out, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({module.rsplit(".", 1)[-1] for module in shapes})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type = {config.get('peft_type')!r}: only LORA adapters are served")
    if config.get("use_dora") or config.get("modules_to_save") or config.get("bias", "none") != "none":
        raise ValueError("use_dora, modules_to_save and bias are not served as adapters: merge it into a full student")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError(
            "rank_pattern and alpha_pattern are not served: vLLM applies one rank and alpha to all modules"
        )
    if int(config["r"]) > RANKS[-1]:
        raise ValueError(f"rank {config['r']} is over vLLM's greatest, {RANKS[-1]}: train it with a lower one")
    return config


def _check_recorded_base(folder: Path, base: Path) -> None:
    record = folder / BASE_RECORD
    if not record.is_file():
        return
    recorded, found = json.loads(record.read_text())["weights_sha256"], weights_sha256(base)
    if recorded != found:
        text = f"was trained on a base with weights {recorded[:12]}…, but {base} has {found[:12]}…"
        raise ValueError(f"{text}: serve it on its own base")


def _module_shapes(
    adapter: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], rank: int
) -> dict[str, tuple[int, int]]:
    sides: dict[str, set[str]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for key, shape in adapter.items():
        match = _KEY.fullmatch(key)
        weight = base.get(f"{match['module']}.weight") if match else None
        if match is None or weight is None or len(weight) != 2:
            raise ValueError(f"its key {key!r} fits no linear layer of the base: it belongs to another model or layout")
        features_out, features_in = weight
        if shape != ((rank, features_in) if match["side"] == "A" else (features_out, rank)):
            raise ValueError(f"{key!r} has shape {shape}, which does not fit rank {rank} on the base's {weight}")
        sides.setdefault(match["module"], set()).add(match["side"])
        shapes[match["module"]] = (features_in, features_out)
    lone = sorted(module for module, found in sides.items() if found != {"A", "B"})
    if lone or not shapes:
        raise ValueError(f"is not whole: A or B is missing for {', '.join(lone[:3])}" if lone else "holds no weights")
    return shapes


def _check_not_zero(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        keys = [key for key in tensors.keys() if ".lora_B." in key]  # noqa: SIM118 (not iterable itself)
        if not any(bool(tensors.get_tensor(key).any()) for key in keys):
            raise ValueError("every B is zero: it is untrained, or was saved empty, and would answer as the base")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
