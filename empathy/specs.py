"""The seven stage kinds and what identifies each: everything here is in the key, nothing else is.

Place and speed (paths, workers, ZeRO stage, micro-batch, URLs) are not here: they live in a stage's `locator` or in the
profile. `revision` is raised by hand when a change of code changes what a kind makes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from empathy.records import Split


class Part(BaseModel):
    """Frozen, closed (a misspelt field is an error), and deterministic to serialise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Spec(Part):
    """What a stage is. Subclasses name their `kind` and `revision`."""

    kind: ClassVar[str]
    revision: ClassVar[int] = 1


# ---------------------------------------------------------------- dialogues


class PaperSplit(Part):
    """W&P: test = dialogues with fewer than two of the five replies rated 3, the rest train."""

    type: Literal["paper"] = "paper"


class RandomSplit(Part):
    """Dialogue by dialogue, seeded, independent of the order of rows."""

    type: Literal["random"] = "random"
    test_fraction: float = Field(0.125, ge=0, lt=1)
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


class GroupSplit(Part):
    """Whole groups (W&P `part_no`, persona, conversation) go to one side."""

    type: Literal["group"] = "group"
    test_fraction: float = Field(0.125, ge=0, lt=1)
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


class OfficialSplit(Part):
    """The split that the source itself publishes."""

    type: Literal["official"] = "official"


SplitSpec = Annotated[PaperSplit | RandomSplit | GroupSplit | OfficialSplit, Field(discriminator="type")]


class DialoguesSpec(Spec):
    """Rows of a source as dialogues in parts of `part_rows`. Input `without` (optional): dialogues that must not
    appear here."""

    kind: ClassVar[str] = "dialogues"
    source: str
    digest: str
    """sha256 of the source's content: the data is identity, its path is not."""
    options: dict[str, Any] = {}
    split: SplitSpec
    only: Split | None = None
    """Keep one side of the split alone."""
    limit: int | None = Field(None, ge=1)
    """A seeded sample of this many dialogues."""
    seed: int = 0
    part_rows: int = Field(256, ge=1)


# ---------------------------------------------------------------- replies


class Recorded(Part):
    """Replies stored with the data, by responder name ("human" included)."""

    type: Literal["recorded"] = "recorded"
    responder: str


class Teacher(Part):
    """A model behind an OpenAI-compatible URL. `turns` are prompt templates, one a chat turn; the last reply is kept.

    Placeholders: {dialogue} the conversation so far, {reply} the reply to rewrite (from input `improves`).
    """

    type: Literal["teacher"] = "teacher"
    provider: str
    model: str
    turns: tuple[str, ...] = Field(min_length=1)
    system: str | None = None
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(200, ge=1)
    seed: int | None = None
    samples: int = Field(1, ge=1)


class Student(Part):
    """The checkpoint of input `checkpoint` answers under its own template."""

    type: Literal["student"] = "student"
    system: str | None = None
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(128, ge=1)
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"


Responder = Annotated[Recorded | Teacher | Student, Field(discriminator="type")]


class RepliesSpec(Spec):
    """Somebody answers dialogues. Inputs: `dialogues`; `improves` (teacher rewrites); `checkpoint` (students)."""

    kind: ClassVar[str] = "replies"
    responder: Responder
    split: Split | None = None
    """The side of the split that is asked; None for all."""


# ---------------------------------------------------------------- examples


class Direct(Part):
    """Method 1: the teacher answers; chosen over a human reply that is not Good."""

    type: Literal["direct"] = "direct"
    both_replies: bool = True
    """SFT on the human and the teacher's reply (the paper), or on the teacher's alone."""
    unrated_is_good: bool = False
    """Take teacher replies without a rating as Good. False: a dialogue without ratings is an error."""


class ImproveHuman(Part):
    """Method 2: the teacher rewrites the human reply."""

    type: Literal["improve_human"] = "improve_human"
    both_replies: bool = True


class ImproveLlm(Part):
    """Method 3: the teacher rewrites its own first answer. `rejected`: "initial" is the paper's text, "human" its
    code."""

    type: Literal["improve_llm"] = "improve_llm"
    both_replies: bool = True
    rejected: Literal["initial", "human"] = "initial"


class Human(Part):
    """No teacher: SFT on the human replies alone. Raises a random base to speech, and is the baseline of every
    method."""

    type: Literal["human"] = "human"
    least_rating: int | None = Field(None, ge=1, le=3)
    """Keep replies rated at least this; None takes all, rated or not."""


MethodSpec = Annotated[Direct | ImproveHuman | ImproveLlm | Human, Field(discriminator="type")]


class ExamplesSpec(Spec):
    """A training or held-out set. Inputs: `dialogues`, `replies` (what is learned), `initial` (what `replies`
    improved, if any).

    `objective` "sft" gives Demonstrations, "dpo" Preferences. `purpose` "train" selects as mission 2 says; "heldout"
    takes every test dialogue's reply (sft), or every test pair where the learned reply is rated above the human's
    (dpo).
    """

    kind: ClassVar[str] = "examples"
    method: MethodSpec
    objective: Literal["sft", "dpo"]
    purpose: Literal["train", "heldout"] = "train"
    split: Split = "train"
    system: str | None = None
    screens: tuple[str, ...] = ()
    max_dropped: float = Field(0.2, ge=0, le=1)
    """Share of candidates the screens may drop before the stage fails."""


# ---------------------------------------------------------------- checkpoint


class RandomBase(Part):
    """A small Llama with random weights and a byte-level BPE tokenizer trained on the replies and prompts it is
    raised on."""

    type: Literal["random"] = "random"
    vocab: int = Field(2048, ge=300)
    hidden: int = Field(128, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    intermediate: int = Field(512, ge=8)
    positions: int = Field(1024, ge=64)


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
    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
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
    epochs: float = Field(3, gt=0)
    batch_examples: int = Field(16, ge=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
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


class LogprobsSpec(Spec):
    """Inputs `checkpoint` and `examples`: the log-probability of every reply in the examples."""

    kind: ClassVar[str] = "logprobs"
    max_length_tokens: int = Field(1024, ge=8)
    precision: Literal["bf16", "fp32"] = "bf16"


# ---------------------------------------------------------------- verdicts, report


class Judge(Part):
    """Who compares, and how. `template` is the prompt's text."""

    provider: str
    model: str
    mode: Literal["robust", "paper"] = "robust"
    template: str
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(700, ge=16)
    repeats: int = Field(1, ge=1)
    attempts: int = Field(3, ge=1, le=3)
    seed: int = 0


class VerdictsSpec(Spec):
    """Inputs `dialogues`, `a` (the arm's replies), `b` (the opponent's). Replies are treated alike and capped at
    `cap_words`."""

    kind: ClassVar[str] = "verdicts"
    judge: Judge
    cap_words: int = Field(97, ge=1)
    split: Split = "test"


class ReportSpec(Spec):
    """Numbers of all arms. Inputs are named `SLOT:WHAT` (see `empathy.experiment`); display names are in the
    locator."""

    kind: ClassVar[str] = "report"
    bootstrap: int = Field(10_000, ge=100)
    seed: int = 0
    examples_shown: int = Field(5, ge=0)


KINDS: dict[str, type[Spec]] = {
    spec.kind: spec
    for spec in (DialoguesSpec, RepliesSpec, ExamplesSpec, CheckpointSpec, LogprobsSpec, VerdictsSpec, ReportSpec)
}
