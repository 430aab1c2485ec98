"""Checkpoints of the store as local folders that an engine can load, each fetched once a machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from empathy.specs import CheckpointSpec
from empathy.stages import Stage
from empathy.store import Artifact, Store
from serving.adapters import BASE_RECORD

DTYPES: dict[str, Literal["bfloat16", "float32"]] = {"bf16": "bfloat16", "fp32": "float32"}
"""An experiment's precision as torch and vLLM call it."""
SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a model that are no weights."""


@dataclass(frozen=True)
class Weights:
    """`name`: the model name in an engine. `base`: folder with config, weights and tokenizer. `adapter`: LoRA folder
    on it, or None. `template`: chat template text."""

    name: str
    base_key: str
    base: Path
    template: str
    adapter: Path | None = None

    def max_model_len(self, at_most: int) -> int:
        """Tokens that prompt and reply may have together: the model's positions, `at_most` this many."""
        positions = json.loads((self.base / "config.json").read_text()).get("max_position_embeddings", at_most)
        return min(int(positions), at_most)


def found_model(name: str, revision: str | None, field: str = "model", weights: bool = True) -> Path:
    """The folder of a model that was not made here: a local folder, or a snapshot of the hub's.

    `weights` False fetches what is small: enough to check. Raises ValueError, naming `field`, when there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", "~", ".")):
        raise ValueError(f"{field} = {name!r}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=None if weights else SMALL))
    except (ValueError, OSError) as error:  # the name, the network, a gate: the hub has an error for each
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{field} = {name!r}: no folder here, and the model hub does not give it ({said}); check the name, log in "
            "where its owner must let you in (HF_TOKEN), or download it and give its folder"
        ) from error


def saved_dtype(folder: Path) -> Literal["auto", "float32", "bfloat16", "float16"]:
    """The precision that a model's weights were saved in: vLLM by itself would compute with less for float32."""
    config = json.loads((folder / "config.json").read_text())
    said = config.get("dtype") or config.get("torch_dtype")
    return said if said in ("float32", "bfloat16", "float16") else "auto"


def own_template(folder: Path, field: str = "model") -> str:
    """The chat template that a model brings. Raises ValueError, naming `field`, when it brings none."""
    from transformers import AutoTokenizer

    try:
        template = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).chat_template
    except (OSError, ValueError) as error:  # as transformers raises for a folder without a tokenizer
        raise ValueError(f"{field} = {str(folder)!r}: there is no tokenizer in it") from error
    if not isinstance(template, str):
        raise ValueError(
            f"{field} = {str(folder)!r}: the model brings no chat template; use one that was tuned to chat"
        )
    return template


def _full_model(folder: Path) -> Path:
    """`folder`/model with the tokenizer's files beside the weights, as engines want them."""
    model = folder / "model"
    for file in sorted((folder / "tokenizer").iterdir()):
        if not (model / file.name).exists():
            shutil.copy(file, model / file.name)
    return model


def _template(artifact: Artifact) -> str:
    return artifact.read_file("template.jinja").decode()


def fetch(stage: Stage, store: Store, cache: Path) -> Weights:
    """The local folders of a finished checkpoint; downloads what this machine does not have yet.

    Raises FileNotFoundError when the checkpoint (or the base it stands on) is not finished.
    """
    artifact = store.get(stage)
    spec = stage.spec
    assert isinstance(spec, CheckpointSpec), f"{stage!r} is no checkpoint"
    name = stage.key[:16]
    external = spec.base is not None and spec.objective is None
    if external:
        return Weights(
            name,
            stage.key,
            found_model(stage.locator["path"], getattr(spec.base, "revision", None)),
            _template(artifact),
        )
    folder = artifact.download(cache / "checkpoints" / f"{stage.key}-{_contents(artifact)}")
    if (folder / "adapter").is_dir():
        base = fetch(stage.inputs["base"], store, cache)
        trained_on = artifact.meta.get("proofs", {}).get("base_weights_sha256")
        if trained_on:  # the engine refuses the adapter on any other base
            (folder / "adapter" / BASE_RECORD).write_text(json.dumps({"weights_sha256": trained_on}))
        return Weights(name, base.base_key, base.base, _template(artifact), folder / "adapter")
    return Weights(name, stage.key, _full_model(folder), _template(artifact))


def _contents(artifact: Artifact) -> str:
    """Of a checkpoint's files: two stores may hold one stage, trained on other machines, whose last bits differ."""
    files = "".join(f"{name} {file.sha256}\n" for name, file in sorted(artifact.files.items()))
    return hashlib.sha256(files.encode()).hexdigest()[:16]


def merge(name: str, weights: Weights, precision: str, cache: Path) -> Weights:
    """A student as weights of its own: its adapter merged into its base. Nothing changes for one that has no adapter.

    Raises ValueError where the merged weights answer otherwise.
    """
    from serving.merging import merged

    if weights.adapter is None:
        return weights
    base = merged(name, weights.base, weights.adapter, weights.template, DTYPES[precision], cache)
    return Weights(weights.name, weights.base_key, base, weights.template)
