"""Bases, training, and what a checkpoint gives to replies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from empathy.specs.parts import Part, Spec


class RandomBase(Part):
    """A small Llama with random weights and a byte-level BPE tokenizer trained on the replies and prompts it is
    raised on."""

    type: Literal["random"] = "random"
    vocab: int = Field(2048, ge=300, le=10_000_000)
    hidden: int = Field(128, ge=8, le=1_000_000)
    layers: int = Field(4, ge=1, le=10_000)
    heads: int = Field(4, ge=1, le=10_000)
    kv_heads: int = Field(2, ge=1, le=10_000)
    intermediate: int = Field(512, ge=8, le=10_000_000)
    positions: int = Field(1024, ge=64, le=10_000_000)


class HubBase(Part):
    """A Hugging Face model: `digest` of its folder's weights, or name and `revision` on a hub."""

    type: Literal["hub"] = "hub"
    model: str
    revision: str | None = None
    digest: str | None = None


Base = Annotated[RandomBase | HubBase, Field(discriminator="type")]


class Lora(Part):
    """Low-rank adapters on all linear layers (of the attention and the feed-forward blocks) unless `targets` names
    some."""

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=512)
    """At most what vLLM serves (`serving.adapters.RANKS`)."""
    alpha: float = Field(16, gt=0, le=1_000_000)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()


class Full(Part):
    """All weights are trained."""

    type: Literal["full"] = "full"


Tuning = Annotated[Lora | Full, Field(discriminator="type")]


class Optimiser(Part):
    """AdamW. `batch_examples` is the number of examples a step over all workers: identity; how it is cut up is the
    profile's."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(3, gt=0, le=10_000)
    batch_examples: int = Field(16, ge=1, le=10_000_000)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=1_000)
    max_grad_norm: float = Field(1.0, gt=0)


class Sft(Part):
    """Cross-entropy on the reply's tokens alone."""

    type: Literal["sft"] = "sft"
    optimiser: Optimiser
    tuning: Tuning


class Dpo(Part):
    """Direct preference optimisation, sigmoid loss (Rafailov et al. 2023, eq. 7), against input `reference`."""

    type: Literal["dpo"] = "dpo"
    optimiser: Optimiser
    tuning: Tuning
    beta: float = Field(0.1, gt=0)


Objective = Annotated[Sft | Dpo, Field(discriminator="type")]


class CheckpointSpec(Spec):
    """Weights, their tokenizer and chat template.

    A student's base is itself a checkpoint: `base` set, `objective` None (a model as it is found) or Sft (raising a
    random one on input `examples`). Every other one has base None and inputs `base`, `examples`, and for DPO
    `reference` (logprobs of its starting point) and, after SFT, `policy` (the checkpoint it starts from).
    """

    kind: ClassVar[str] = "checkpoint"
    base: Base | None = None
    objective: Objective | None = None
    template: str | None = None
    """The chat template's text (Jinja); bases only. None keeps the one the model brings."""
    max_length_tokens: int = Field(1024, ge=8)
    """Examples longer than this are dropped and counted, never cut."""
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0

    @property
    def revision(self) -> int:
        """2: DPO in bf16 no longer rounds the reference's log-probabilities of whole replies to bf16."""
        return 2 if isinstance(self.objective, Dpo) and self.precision == "bf16" else 1


class LogprobsSpec(Spec):
    """Inputs `checkpoint` and `examples`: the log-probability of every reply in the examples."""

    kind: ClassVar[str] = "logprobs"
    max_length_tokens: int = Field(1024, ge=8)
    precision: Literal["bf16", "fp32"] = "bf16"
