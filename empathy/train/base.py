"""Bases: models as they are found, and small random ones with a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from empathy.records import Demonstration
from empathy.specs import HubBase, RandomBase
from empathy.stages import Stage
from empathy.train.bench import Bench, checkpoint_spec, pointed

PAD, EOS = "<|pad|>", "<|end|>"
MARKERS = ["<|system|>", "<|user|>", "<|assistant|>"]


def texts(examples: Iterable[Demonstration]) -> list[str]:
    """Every message and reply, each once, in order: what a tokenizer learns from."""
    seen = dict.fromkeys(text for e in examples for text in (*(t.content for t in e.messages), e.reply))
    return list(seen)


def random_tokenizer(corpus: list[str], vocab: int, positions: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocab` tokens; the same for the same corpus. It has no
    begin-of-sequence token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[PAD, EOS, *MARKERS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def random_model(base: RandomBase, tokenizer: Any, seed: int, precision: str) -> Any:
    """A Llama of `base`'s shape with random weights, the same for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from empathy.train.bench import torch_dtype

    if base.hidden % base.heads or base.heads % base.kv_heads:
        raise ValueError(
            f"hidden = {base.hidden}, heads = {base.heads}, kv_heads = {base.kv_heads}: heads must divide "
            f"hidden, and kv_heads heads"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=base.hidden,
        intermediate_size=base.intermediate,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.kv_heads,
        max_position_embeddings=base.positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(torch_dtype(precision))


def tokenizer_and_template(stage: Stage, bench: Bench) -> tuple[Any, str]:
    """Those of a base that is about to be made; equal on every rank."""
    spec = checkpoint_spec(stage)
    if isinstance(spec.base, RandomBase):
        tokenizer = _trained_tokenizer(stage, spec.base, bench)
    else:
        assert isinstance(spec.base, HubBase)
        tokenizer = _found_tokenizer(stage, spec.base)
    template = spec.template or tokenizer.chat_template
    if not template:
        raise ValueError(
            f'template: {stage.label or "this base"} brings no chat template; give one, for instance template = "plain"'
        )
    tokenizer.chat_template = template
    return tokenizer, template


def _trained_tokenizer(stage: Stage, base: RandomBase, bench: Bench) -> Any:
    if "examples" not in stage.inputs:
        raise ValueError(
            'base = "random": its tokenizer is trained on its examples; give the stage an input `examples`'
        )
    corpus = texts(bench.artifact(stage.inputs["examples"]).read(Demonstration))
    return bench.group.from_first(random_tokenizer(corpus, base.vocab, base.positions) if bench.group.first else None)


def _found_tokenizer(stage: Stage, base: HubBase) -> Any:
    from transformers import AutoTokenizer

    name, revision = pointed(stage, base)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: masks go by position here, never by this id
    return tokenizer
