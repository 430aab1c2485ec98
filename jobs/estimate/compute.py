"""GPU-hours of training, scoring and answering, by formulas of FLOPs and bytes (docs/money.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.profile import Profile
from empathy.specs import CheckpointSpec, ExamplesSpec, Full, RepliesSpec, Student
from empathy.stages import Stage
from jobs.estimate import MESSAGE_TOKENS, tokens
from jobs.estimate.shapes import shape_of
from jobs.estimate.view import View, by_student, samples

WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
FORWARD, LORA, FULL = 2, 4, 6
"""FLOPs a token and weight: a pass forward 2, back through activations 2, back to weights 2 (Kaplan et al. 2020, 2.1);
LoRA's own weights are well under 1% and left out, so are attention scores of these short sequences."""


@dataclass(frozen=True)
class Work:
    """`tokens` that go through students, `hours` of one GPU. `unknown` stages are in neither."""

    stages: int = 0
    tokens: float = 0.0
    hours: float = 0.0
    unknown: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.stages + other.stages,
            self.tokens + other.tokens,
            self.hours + other.hours,
            self.unknown + other.unknown,
        )


def work(to_make: Iterable[Stage], view: View, profile: Profile) -> dict[str, Work]:
    """By what is done: training, scoring, answering."""
    found = {"training": Work(), "scoring": Work(), "answering": Work()}
    for stage in to_make:
        if isinstance(stage.spec, CheckpointSpec) and stage.spec.objective:
            found["training"] += _training(stage, view, profile)
        elif stage.kind == "logprobs":
            found["scoring"] += _scoring(stage, view, profile)
        elif by_student(stage):
            found["answering"] += _answering(stage, view, profile)
    return found


def example_tokens(examples: Stage, view: View, profile: Profile) -> float | None:
    """Mean tokens of one example as a student reads it: the prompt of a pair once where rows share what they begin
    with (`empathy.train.sharing`), else twice."""
    spec, corpus = examples.spec, view.corpus(examples)
    assert isinstance(spec, ExamplesSpec)
    if not corpus.some:
        return None
    reply = view.reply_tokens(examples.inputs.get("replies"), corpus)
    other = view.reply_tokens(examples.inputs.get("initial"), corpus)
    prompt = tokens(corpus.dialogue_chars + len(spec.system or "")) + 2 * MESSAGE_TOKENS
    if spec.objective == "dpo":
        shared = profile.train.shares_prefixes and profile.train.zero_stage < 3
        return (1 if shared else 2) * prompt + reply + other
    both = getattr(spec.method, "both_replies", False) and spec.purpose == "train"
    many = samples(examples.inputs["replies"]) if "replies" in examples.inputs else 1
    return prompt + ((many * reply + other) / (many + 1) if both else reply)


def _set_tokens(examples: Stage, view: View, profile: Profile) -> float | None:
    rows, each = view.examples(examples), example_tokens(examples, view, profile)
    return None if rows is None or each is None else rows * each


def _training(stage: Stage, view: View, profile: Profile) -> Work:
    spec, shape = stage.spec, shape_of(stage)
    assert isinstance(spec, CheckpointSpec)
    assert spec.objective is not None
    read = _set_tokens(stage.inputs["examples"], view, profile)
    if read is None or shape is None:
        return Work(1, unknown=1)
    read *= spec.objective.optimiser.epochs
    flops = FULL if isinstance(spec.objective.tuning, Full) else LORA
    return Work(1, read, _hours(flops * shape.multiplied * read, profile))


def _scoring(stage: Stage, view: View, profile: Profile) -> Work:
    read, shape = _set_tokens(stage.inputs["examples"], view, profile), shape_of(stage.inputs["checkpoint"])
    if read is None or shape is None:
        return Work(1, unknown=1)
    return Work(1, read, _hours(FORWARD * shape.multiplied * read, profile))


def _answering(stage: Stage, view: View, profile: Profile) -> Work:
    """Prompts at the peak rate; replies at the rate of reading the weights once a step for a batch of max_num_seqs."""
    spec, shape, corpus, n = stage.spec, shape_of(stage.inputs["checkpoint"]), view.corpus(stage), view.rows(stage)
    assert isinstance(spec, RepliesSpec)
    assert isinstance(spec.responder, Student)
    if n is None or shape is None:
        return Work(1, unknown=1)
    prompts, said = n * (tokens(corpus.dialogue_chars) + 2 * MESSAGE_TOKENS), n * view.reply_tokens(stage, corpus)
    read_s = shape.multiplied * WEIGHT_BYTES[spec.responder.precision] / (profile.gpu.gb_per_s * 1e9)
    decoding_h = said / min(profile.engine.max_num_seqs, max(1, n)) * read_s / 3600
    return Work(1, prompts + said, _hours(FORWARD * shape.multiplied * prompts, profile) + decoding_h)


def _hours(flops: float, profile: Profile) -> float:
    return flops / (profile.gpu.tflops * 1e12 * profile.gpu.mfu) / 3600
