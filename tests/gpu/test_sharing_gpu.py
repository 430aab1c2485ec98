"""Branches in one FlashAttention call: as near to float32 as the padded batch is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

from empathy.train import branches, sharing
from tests.parity.test_sharing import drawn, padded, read

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def in_one_row(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """(the loss, all gradients in float32)."""
    loss, gradients = read(model, batch)
    return loss, torch.cat([gradient.float().flatten() for gradient in gradients.values()])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [LlamaConfig(**SHAPE), Qwen2Config(**SHAPE)], ids=["llama", "qwen2"])
def test_no_further_from_float32_than_the_padded_batch(config: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "BRANCH_TOKENS", 0)
    torch.manual_seed(seed)
    exact = AutoModelForCausalLM.from_config(config).cuda()
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    shared = copy.deepcopy(plain)
    sharing.install(shared)
    calls = list[int]()
    taken = branches.varlen_attn
    monkeypatch.setattr(branches, "varlen_attn", lambda *given, **named: calls.append(1) or taken(*given, **named))
    batch = {name: tensor.cuda() for name, tensor in padded(drawn(seed, prompts=6, replies=3, trunk=40)).items()}
    (true_loss, true), (plain_loss, theirs), (loss, ours) = (
        in_one_row(model, batch) for model in (exact, plain, shared)
    )
    assert len(calls) >= config.num_hidden_layers
    assert abs(loss - true_loss) <= 2 * abs(plain_loss - true_loss) + 2e-3
    assert (ours - true).norm() <= 1.25 * (theirs - true).norm()
