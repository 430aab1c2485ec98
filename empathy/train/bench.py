"""What a training process has at hand: the store, its scratch folder, and one base model kept in memory from stage
to stage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from empathy.specs import CheckpointSpec, HubBase, Lora, RandomBase
from empathy.stages import Stage
from empathy.store import Artifact, Store, Writer
from empathy.train.group import Group
from empathy.train.placement import Placement
from empathy.train.tokens import Renderer

Report = Callable[[Stage, int, int], None]
"""progress(stage, done, total): steps of a training, rows of a scoring. Called on rank 0."""


def checkpoint_spec(stage: Stage) -> CheckpointSpec:
    assert isinstance(stage.spec, CheckpointSpec), stage
    return stage.spec


def base_of(checkpoint: Stage) -> Stage:
    """The base that a checkpoint stands on: itself when it is one."""
    return checkpoint if checkpoint_spec(checkpoint).base else checkpoint.inputs["base"]


def adapter_of(checkpoint: Stage) -> Lora | None:
    """The LoRA that a checkpoint consists of; None for a base and for weights of its own."""
    objective = checkpoint_spec(checkpoint).objective
    tuning = objective.tuning if objective else None
    return tuning if isinstance(tuning, Lora) else None


@dataclass
class Bench:
    """One process's. `scratch` is a folder shared by the processes of one machine."""

    store: Store
    group: Group
    placement: Placement
    scratch: Path
    report: Report
    epoch: int | None = None
    """The fencing number of the stage in work: that of the lease which its maker holds."""
    _resident: tuple[tuple[str, str], Any] | None = None
    _digests: dict[str, str] = field(default_factory=dict)

    def artifact(self, stage: Stage) -> Artifact:
        return self.store.get(stage)

    def writer(self, stage: Stage) -> Writer:
        """Writes under the lease that was held when the work was given out: one that was lost is noticed."""
        return self.store.writer(stage, self.epoch)

    def folder(self, stage: Stage) -> Path:
        """The files of a finished stage on this machine."""
        return self.artifact(stage).download(self.scratch / f"{stage.kind}-{stage.key}")

    def weights(self, stage: Stage) -> tuple[str, str | None]:
        """Where the weights of a base, or of a full checkpoint, are: (folder or hub name, hub revision)."""
        folder = self.folder(stage)
        if (folder / "model").is_dir():
            return str(folder / "model"), None
        base = checkpoint_spec(stage).base
        if isinstance(base, HubBase):
            return pointed(stage, base)
        assert isinstance(base, RandomBase)
        raise FileNotFoundError(
            f"{stage!r}: its artifact holds no model; delete the folder {self.artifact(stage).folder} and run again"
        )

    def tokenizer(self, checkpoint: Stage) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder(base_of(checkpoint)) / "tokenizer"), local_files_only=True)

    def renderer(self, checkpoint: Stage) -> Renderer:
        """Tokenizer and template of a checkpoint's base: every checkpoint of a base renders alike."""
        base = base_of(checkpoint)
        return Renderer(self.tokenizer(base), self.artifact(base).read_file("template.jinja").decode())

    def base_model(self, base: Stage, precision: str) -> Any:
        """The base's weights, frozen in use: the same object from one stage to the next."""
        wanted = (base.key, precision)
        if self._resident is None or self._resident[0] != wanted:
            self._resident = None  # let the old one go before the new one comes
            self._resident = (wanted, self.fresh_model(base, precision))
        return self._resident[1]

    def fresh_model(self, stage: Stage, precision: str) -> Any:
        """The weights of a base or a full checkpoint, in an object of their own."""
        from transformers import AutoModelForCausalLM

        name, revision = self.weights(stage)
        return AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=torch_dtype(precision), trust_remote_code=False
        )

    def drop_base(self) -> None:
        """Forget the resident base (it was changed, or memory is needed)."""
        self._resident = None

    def weights_sha256(self, base: Stage) -> str | None:
        """Hash of a base's safetensors files, names and contents; None where its weights are known by a hub name
        alone.
        """
        if base.key not in self._digests:
            name, _ = self.weights(base)
            if not Path(name).is_dir():
                return None
            self._digests[base.key] = folder_sha256(Path(name))
        return self._digests[base.key]


def pointed(stage: Stage, base: HubBase) -> tuple[str, str | None]:
    """Where a base that is only pointed at is found now: the folder that its locator's `path` names, or a hub."""
    folder = Path(stage.locator.get("path", base.model)).expanduser()
    if (folder / "config.json").is_file():
        return str(folder), None
    if base.digest is not None or folder.is_dir():
        raise ValueError(
            f"model = {str(folder)!r}: there is no config.json; give the folder of a Hugging Face model, or its "
            f"name on a hub"
        )
    return base.model, base.revision


def torch_dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
