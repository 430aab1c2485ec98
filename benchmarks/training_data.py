"""What `benchmarks.training` trains: dialogues of the paper's lengths, and models of true shape with random weights."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from empathy import templates
from empathy.records import Demonstration, Dialogue, Preference, Turn
from jobs.estimate.shapes import Shape

TASK = (
    "You are a good listener. A person tells you how they are. Answer them with empathy: show in your own words that "
    "you have understood what happened and what it means to them, share the feeling, and do not judge. Do not give "
    "advice that nobody asked for, do not speak about yourself, and do not hurry them to the bright side. Be warm and "
    "concrete, take up something that they said, and keep to one or two sentences, as a friend would who has time."
)


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def dialogues(number: int, seed: int) -> list[tuple[Dialogue, tuple[str, str]]]:
    """Dialogues of 44 words on average, each with two replies of 28: W&P's lengths, in words of the sample data."""
    from empathy.sources.sample import Sample

    words = sorted({w for d in Sample().rows() if isinstance(d, Dialogue) for t in d.turns for w in t.content.split()})
    rng = random.Random(seed)

    def text(mean: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(mean // 2, mean * 3 // 2)))

    turns = [(Turn("system", TASK), Turn("user", text(44))) for _ in range(number)]
    return [(Dialogue(f"d{seed}-{i}", "g", t), (text(28), text(28))) for i, t in enumerate(turns)]


def demonstrations(number: int) -> list[Demonstration]:
    found = dialogues(-(-number // 2), 1)
    return [Demonstration.of(d, d.turns, reply, str(k)) for d, replies in found for k, reply in enumerate(replies)]


def preferences(number: int) -> list[Preference]:
    return [Preference.of(d, d.turns, (a, "teacher"), (b, "human")) for d, (a, b) in dialogues(number, 2)]


def make_model(shape: Shape, name: str, folder: Path) -> None:
    """A folder with random weights of the shape, and a small tokenizer: ids reach a part of the vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from empathy.train.base import random_tokenizer, texts

    tokenizer = random_tokenizer(texts(demonstrations(512)), 4096, 2048)
    values: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    with torch.device("cuda" if on_gpu() else "cpu"):
        model: Any = (
            Qwen2ForCausalLM(Qwen2Config(**values)) if "Qwen" in name else LlamaForCausalLM(LlamaConfig(**values))
        )
    model.to(torch.bfloat16 if on_gpu() else torch.float32).save_pretrained(folder)
    tokenizer.chat_template = templates.load("plain")
    tokenizer.save_pretrained(folder)


def rows_of(folder: Path, sft: Sequence[Demonstration], dpo: Sequence[Preference]) -> dict[str, list[list[list[int]]]]:
    """By objective, for each example the token ids of its sequences: one, or a pair's two."""
    from transformers import AutoTokenizer

    from empathy.train.tokens import Renderer, demonstration_rows, preference_rows

    renderer = Renderer(AutoTokenizer.from_pretrained(folder / "base"), templates.load("plain"))
    return {
        "sft": [[row.ids] for row in demonstration_rows(renderer, sft)],
        "dpo": [[a.ids, b.ids] for a, b in preference_rows(renderer, dpo)],
    }


def tokens_a_step(rows: list[list[list[int]]], batch: int) -> tuple[float, float]:
    """(real, distinct) tokens of a step on average: distinct ones are the nodes of the tree of a step's sequences."""
    from empathy.train import order

    steps = order.batches(len(rows), batch, 1, 0)
    real = [sum(len(ids) for i in step for ids in rows[i]) for step in steps]
    distinct = [nodes(ids for i in step for ids in rows[i]) for step in steps]
    return statistics.mean(real), statistics.mean(distinct)


def nodes(sequences: Iterable[Sequence[int]]) -> int:
    """Tokens of the tree that merges equal beginnings."""
    found, before = 0, list[int]()
    for ids in sorted(list(s) for s in sequences):
        same = next(
            (k for k, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        found, before = found + len(ids) - same, ids
    return found
