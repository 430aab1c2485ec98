"""A batch laid out anew gives what the padded batch gives: tokens, hidden states, gradients."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.cpmant import CpmAntConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_bigcode import GPTBigCodeConfig
from transformers.models.llama import LlamaConfig
from transformers.models.llama4 import Llama4TextConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.modernbert_decoder import ModernBertDecoderConfig
from transformers.models.opt import OPTConfig
from transformers.models.qwen3 import Qwen3Config
from transformers.models.recurrent_gemma import RecurrentGemmaConfig

from empathy.train import branches, sharing

Rows = list[list[int]]
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**TINY),
    "qwen3": lambda: Qwen3Config(**TINY),
    "mistral": lambda: MistralConfig(**TINY, sliding_window=4096),
    "gpt2": lambda: GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
}


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def drawn(seed: int, prompts: int = 5, replies: int = 3, trunk: int = 4) -> Rows:
    """Rows of every prompt with each of its replies; all begin with the same `trunk`."""
    rng = np.random.default_rng(seed)
    said = lambda least, most: rng.integers(3, 64, rng.integers(least, most)).tolist()  # noqa: E731
    begun = said(trunk, trunk + 1)
    rows = [begun + prompt + said(1, 9) for prompt in [said(3, 15) for _ in range(prompts)] for _ in range(replies)]
    return [rows[i] for i in rng.permutation(len(rows))]


def padded(rows: Rows, left: bool = False) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    ids = [f + row if left else row + f for row, f in zip(rows, fill, strict=True)]
    there = [
        [0] * len(f) + [1] * len(row) if left else [1] * len(row) + [0] * len(f)
        for row, f in zip(rows, fill, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(there)}


def laid_out(rows: Rows) -> branches.Layout | None:
    return branches.lay_out(padded(rows)["input_ids"].numpy(), np.array([len(row) for row in rows]))


@pytest.fixture(autouse=True)
def free_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows here are of a few tokens: they would rarely be laid out."""
    monkeypatch.setattr(branches, "BRANCH_TOKENS", 0)


@pytest.mark.parametrize("seed", range(20))
def test_each_branch_goes_on_from_its_rows_own_past(seed: int) -> None:
    rows = drawn(seed, prompts=1 + seed % 6, replies=2 + seed % 4, trunk=seed % 5)
    layout = laid_out(rows)
    assert layout is not None
    begin = np.cumsum([0, *(branch.tokens for branch in layout.branches)])
    ids, positions = layout.ids[0].tolist(), layout.positions[0].tolist()
    assert (
        begin[-1] == len(ids) == len(positions) == len({tuple(row[: t + 1]) for row in rows for t in range(len(row))})
    )
    owners = {int(places[len(row) - 1]): row for row, places in zip(rows, layout.place, strict=True)}
    for n, branch in enumerate(layout.branches):
        end = int(begin[n + 1])
        past = [int(begin[m]) + k for m, count in branch.past for k in range(count)]
        seen = past + list(range(int(begin[n]), end))
        assert all(place < begin[n] for place in past)
        assert [positions[k] for k in seen] == list(range(len(seen)))
        assert [ids[k] for k in seen] == owners[end - 1]
    for row, places in zip(rows, layout.place.tolist(), strict=True):
        assert [ids[k] for k in places[: len(row)]] == row
        assert set(places[len(row) :]) <= {places[len(row) - 1]}


def test_what_rows_share_is_read_once() -> None:
    prompt = list(range(3, 43))
    rows = [[*prompt, 50], [*prompt, 51, 52], [*prompt, 53]]
    layout = laid_out(rows)
    assert layout is not None
    assert layout.ids.shape == (1, 40 + 1 + 2 + 1)
    assert [(branch.tokens, branch.past) for branch in layout.branches] == [(41, ()), (2, ((0, 40),)), (1, ((0, 40),))]


def test_rows_of_one_length_with_nothing_in_common_stay_as_they_are() -> None:
    assert laid_out([[3] * 10, [4] * 10, [5] * 10]) is None


def test_what_would_cost_more_in_branches_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of 10, 9 and 8: 27 tokens of their own in place of 30."""
    rows = [[3] * 10, [4] * 9, [5] * 8]
    assert laid_out(rows) is not None
    monkeypatch.setattr(branches, "BRANCH_TOKENS", 1)
    assert laid_out(rows) is None


def test_padding_that_looks_like_tokens_is_shared_with_nobody() -> None:
    """Id 0 is a token of the first row and padding of the second."""
    rows = [[7, 8, 0, 0, 0, 0, 0, 0], [7, 8], [7, 8, 9]]
    layout = laid_out(rows)
    assert layout is not None
    assert layout.ids.size == 8 + 1


def read(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and all gradients."""
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(**batch, labels=labels, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_gradients_are_those_of_the_padded_batch(name: str) -> None:
    model, batch = model_of(CONFIGS[name]()), padded(drawn(1))
    plain, theirs = read(model, batch)
    tokens = counted(model)
    sharing.install(model)
    loss, ours = read(model, batch)
    assert loss == pytest.approx(plain, rel=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert tokens[-1] < 0.6 * batch["input_ids"].numel()


def sequences_one_by_one(
    query: Any, key: Any, value: Any, query_ends: Any, key_ends: Any, most_queries: int, most_keys: int, **rest: Any
) -> Any:
    """What torch's `varlen_attn` is to give, which runs on GPUs alone: sequence s has the queries from query_ends[s] on
    and the keys from key_ends[s] on, and the last query sees the last key."""
    assert rest["window_size"] == (-1, 0)
    found = []
    for q, k, v in zip(
        query.split(query_ends.diff().tolist()),
        key.split(key_ends.diff().tolist()),
        value.split(key_ends.diff().tolist()),
        strict=True,
    ):
        assert len(q) <= most_queries
        assert len(k) <= most_keys
        sees = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        heads_first = [x.transpose(0, 1) for x in (q, k, v)]
        found.append(
            torch.nn.functional.scaled_dot_product_attention(
                *heads_first, sees, scale=rest["scale"], enable_gqa=rest["enable_gqa"]
            ).transpose(0, 1)
        )
    return torch.cat(found)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_branches_in_one_call_are_the_branches_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to FlashAttention, read by a plain stand-in (tests/gpu has the real one)."""
    model, batch = model_of(CONFIGS[name]()), padded(drawn(6))
    sharing.install(model)
    one_by_one, theirs = read(model, batch)
    asked = list[bool]()
    monkeypatch.setattr(branches, "flash_takes", lambda query: asked.append(True) or True)
    monkeypatch.setattr(branches, "varlen_attn", sequences_one_by_one)
    at_once, ours = read(model, batch)
    assert asked
    assert at_once == pytest.approx(one_by_one, rel=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def counted(model: Any) -> list[int]:
    """How many tokens each forward pass of the decoder embeds from now on."""
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: read.append(given[0].numel()))
    return read


def hidden(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model.get_decoder()(**batch, use_cache=False).last_hidden_state
    return states * batch["attention_mask"][..., None]


UNFIT: dict[str, Any] = {
    "mamba: it takes no mask of four axes": lambda: MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "recurrent gemma: rows flow into each other": lambda: RecurrentGemmaConfig(
        **{k: v for k, v in TINY.items() if k != "head_dim"}, lru_width=32
    ),
    "llama 4: its decoder is the whole model": lambda: Llama4TextConfig(
        **TINY, intermediate_size_mlp=48, num_local_experts=2
    ),
    "modern bert: its decoder is the head": lambda: ModernBertDecoderConfig(
        **{k: v for k, v in TINY.items() if k not in ("head_dim", "num_key_value_heads")}, pad_token_id=0
    ),
    "cpm ant: its decoder takes other things": lambda: CpmAntConfig(
        vocab_size=64, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=48, num_hidden_layers=2
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_plain_decoder_is_read_row_by_row(name: str, dtype: torch.dtype) -> None:
    model, batch = model_of(UNFIT[name]()).eval().to(dtype), padded(drawn(2))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(**batch, use_cache=False).logits
        return found

    plain = logits()
    sharing.install(model)
    torch.testing.assert_close(logits(), plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case", ["padded on the left", "longer than the window", "with dropout", "with dropout of attention"]
)
def test_what_the_layout_cannot_say_is_left_alone(case: str) -> None:
    config = MistralConfig(**TINY, sliding_window=8 if case == "longer than the window" else 4096)
    model, batch = model_of(config), padded(drawn(3), left=case == "padded on the left")
    if case == "with dropout":
        model.get_decoder().layers[0].add_module("extra", torch.nn.Dropout(0.1))
    if case == "with dropout of attention":
        config.attention_dropout = 1e-9  # in the config alone: the layers were made without
    plain, read = hidden(model, batch), counted(model)
    sharing.install(model)
    torch.testing.assert_close(hidden(model, batch), plain, rtol=0, atol=0)
    assert read == [batch["input_ids"].numel()]


def test_what_else_is_asked_of_a_decoder_is_answered_as_ever() -> None:
    model, batch = model_of(CONFIGS["llama"]()).eval(), padded(drawn(4))
    before = model(**batch, output_hidden_states=True).hidden_states
    sharing.install(model)
    after = model(**batch, output_hidden_states=True).hidden_states
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    made = model.generate(**padded([[5, 6, 7], [5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert made.shape == (2, 7)


def test_weights_go_with_their_last_user_and_wait_for_no_garbage_collector() -> None:
    model = model_of(CONFIGS["llama"]())
    sharing.install(model)
    hidden(model, padded(drawn(1)))
    weights = weakref.ref(model.get_decoder())
    gc.disable()
    try:
        del model
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.1),
        GPTBigCodeConfig(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.1, resid_pdrop=0.0, embd_pdrop=0.0
        ),
    ],
    ids=["opt", "gpt-bigcode"],
)
def test_what_is_dropped_by_a_number_of_the_config_is_not_shared(config: Any) -> None:
    model, batch = model_of(config).train(), padded([[*range(3, 20), 30], [*range(3, 20), 31, 32], [40, 41]])
    sharing.install(model)
    hidden(model.eval(), batch)  # as a reference is scored on the resident base before it trains
    read = counted(model.train())
    hidden(model, batch)
    assert read == [batch["input_ids"].numel()]


def test_what_is_saved_knows_nothing_of_it(tmp_path: Path) -> None:
    model = model_of(CONFIGS["llama"]())
    sharing.install(model)
    assert model.config._attn_implementation == branches.BY_BRANCH
    model.save_pretrained(tmp_path)
    assert branches.BY_BRANCH not in (tmp_path / "config.json").read_text()


def test_a_model_with_another_attention_is_left_alone() -> None:
    model, batch = model_of(CONFIGS["llama"]()), padded(drawn(2))
    model.set_attn_implementation("eager")
    plain, read = hidden(model, batch), counted(model)
    sharing.install(model)
    torch.testing.assert_close(hidden(model, batch), plain, rtol=0, atol=0)
    assert read == [batch["input_ids"].numel()]


def test_installing_twice_is_installing_once() -> None:
    model = model_of(CONFIGS["llama"]())
    sharing.install(model)
    first = model.get_decoder().forward
    sharing.install(model)
    assert model.get_decoder().forward is first
