"""A real student small enough for a laptop's tests: 0.8M parameters, a BPE tokenizer of 1,024 tokens, LoRA adapters."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # with what it imports it would slow down tests that need a tokenizer alone
    from serving.students import StudentSet

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 1024
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_student(path: Path, seed: int = 0) -> Path:
    """Write a random Llama (hidden 128, 4 layers, 4 heads, 2 KV heads, float32) and its tokenizer into `path`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.2,  # wide enough that greedy choices are clear-cut
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_adapter(base: Path, path: Path, seed: int, rank: int = 8) -> Path:
    """Write a LoRA adapter of `base` with random A and B (so it changes the replies) into `path`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(model, lora).save_pretrained(path)
    return path


def tiny_set(root: Path, **options: Any) -> StudentSet:
    """A tiny base with two students, "kind" and "wise", as an engine takes them."""
    from serving.students import StudentSet

    base = tiny_student(root / "base")
    adapters = {name: str(tiny_adapter(base, root / name, seed)) for name, seed in (("kind", 1), ("wise", 2))}
    return StudentSet(str(base), TEMPLATE, adapters, dtype="float32", kv_cache_gib=0.25, **options)


def greedy_replies(students: StudentSet, prompts: Sequence[list[int]], tokens: int) -> dict[str, list[list[int]]]:
    """Student -> transformers' greedy reply (token ids) to each prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(students.base, dtype=torch.float32)
    replies = {}
    for name in students.names:
        model = PeftModel.from_pretrained(base, students.adapters[name]) if name in students.adapters else base
        whole = [model.generate(torch.tensor([p]), max_new_tokens=tokens, do_sample=False)[0].tolist() for p in prompts]
        replies[name] = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
        base = model.unload() if isinstance(model, PeftModel) else base
    return replies


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([inspect.getsource(argparse)], trainer)  # any text of 100 kB that is always there
    assert bpe.get_vocab_size() == VOCABULARY, bpe.get_vocab_size()
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast
