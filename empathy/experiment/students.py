"""[students.NAME], [train] and [generate]: who learns, how, and how it answers."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from empathy.experiment.data import SplitField
from empathy.experiment.sections import MOST_TEMPERATURE, MOST_TOKENS, Section, Seed
from empathy.parts import Seed64
from empathy.sources import Source
from empathy.specs import Full, Lora, Optimiser, RandomBase, RandomSplit

HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What the attention of vLLM 0.29 on CPUs takes."""


MOST_LEARNING_RATE = 1.0
"""AdamW moves every weight by about so much a step: weights themselves are smaller."""
AnyOptimiser = TypeVar("AnyOptimiser", bound=Optimiser)


def _moderate(optimiser: AnyOptimiser) -> AnyOptimiser:
    """Refused in files alone: the guard against a loss that is no number is tried with what nobody would train with."""
    if optimiser.learning_rate > MOST_LEARNING_RATE:
        raise ValueError(f"learning_rate = {optimiser.learning_rate:g}: must be at most {MOST_LEARNING_RATE:g}")
    return optimiser


Moderate = AfterValidator(_moderate)


class Raise(Section):
    """How a random base learns to speak: full SFT on human replies.

    On the train side of a `source` of its own, from which the experiment's dialogues are taken out; without one, on the
    experiment's own training dialogues.
    """

    source: Source | None = None
    split: SplitField = RandomSplit(test_fraction=0.0)
    limit: int | None = Field(None, ge=1, lt=2**63)
    optimiser: Annotated[Optimiser, Moderate]


class StudentModel(Section):
    """A Hugging Face name or folder (`model`), or a small one made from nothing (`init = "random"`, `size`,
    `raise`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    model: str | None = Field(None, min_length=1)
    revision: str | None = None
    init: Literal["random"] | None = None
    size: RandomBase = RandomBase()
    raised: Raise | None = Field(None, alias="raise")
    template: str = "plain"
    """A template of the package by name, or a path of a Jinja file; "own" keeps the one that the model brings."""

    @model_validator(mode="after")
    def _one_of(self) -> StudentModel:
        if (self.model is None) == (self.init is None):
            raise ValueError('give either model = "NAME OR FOLDER" or init = "random", not both and not neither')
        if self.init == "random" and self.raised is None:
            raise ValueError("init = 'random' needs a table `raise` that says which dialogues teach it to speak")
        if self.size.heads % self.size.kv_heads:
            raise ValueError(
                f"size.kv_heads = {self.size.kv_heads}: must divide size.heads = {self.size.heads}, which share them"
            )
        width, odd = divmod(self.size.hidden, self.size.heads)
        if odd or width not in HEAD_WIDTHS:
            raise ValueError(
                f"size.hidden = {self.size.hidden} over size.heads = {self.size.heads}: a head must be one of "
                f"{', '.join(map(str, HEAD_WIDTHS))} wide, or vLLM cannot serve the student"
            )
        if self.model is not None and self.raised is not None:
            raise ValueError("raise belongs to init = 'random'; a model that can speak is not raised")
        return self


class DpoOptimiser(Optimiser):
    """AdamW and the strength of the pull toward the reference."""

    beta: float = Field(0.1, gt=0, le=1_000)


class Train(Section):
    """Both steps. `tuning` chooses LoRA (with `lora`) or all weights."""

    tuning: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    sft: Annotated[Optimiser, Moderate] = Optimiser(learning_rate=5e-5)
    dpo: Annotated[DpoOptimiser, Moderate] = DpoOptimiser(learning_rate=5e-5)
    max_length_tokens: int = Field(1024, ge=8, le=MOST_TOKENS)
    precision: Literal["bf16", "fp32"] = "bf16"
    both_replies: bool = True
    """SFT on the human (method 3: initial) and the learned reply, or on the learned one alone."""
    rejected: Literal["initial", "human"] = "initial"
    """Method 3's rejected reply: the paper's text, or its code."""
    original: Literal["initial", "human"] = "initial"
    """The reply that method 3 learns beside the improved one: the paper's text, or its code."""
    division: Literal["ratings", "random"] = "ratings"
    """Method 3's dialogues for SFT and for DPO: split as method 2's (the paper's text), or at random (its code: 950 of
    1,750 for SFT)."""
    division_seed: Seed64 = 0

    @property
    def how(self) -> Lora | Full:
        return self.lora if self.tuning == "lora" else Full()


class Generate(Section):
    """How students and bases answer the test dialogues."""

    temperature: float = Field(0.0, ge=0, le=MOST_TEMPERATURE)
    max_tokens: int = Field(128, ge=1, le=MOST_TOKENS)
    seed: Seed = 0
    system: str | None = None
    """Put before every student prompt, in training and in answering alike. The paper has none."""
