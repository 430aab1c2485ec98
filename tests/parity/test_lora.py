"""LoRA's layers reckoned as one node give what PEFT's give: outputs, gradients; and PEFT itself gives the rest."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig

from empathy.store import Store
from empathy.train import lora, session
from empathy.train.placement import Placement
from tests.lessons import chain

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ADAPTER = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IDS = torch.randint(64, (3, 11), generator=torch.Generator().manual_seed(0))


class Ops(TorchDispatchMode):
    """What is dispatched to kernels and views while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def llama(biased: bool = False, dtype: torch.dtype = torch.float32, **adapter: Any) -> Any:
    """In training; its adapters are no longer zero, as they are at first."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY, attention_bias=biased, mlp_bias=biased)).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return adapted(model, **adapter)


def adapted(model: Any, **adapter: Any) -> Any:
    grown = get_peft_model(model, LoraConfig(**ADAPTER | adapter), autocast_adapter_dtype=False)
    stirred(grown)
    return grown.train()


def stirred(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def ours(model: Any) -> Any:
    """A copy of it that goes our way."""
    other = copy.deepcopy(model)
    lora.install(other)
    return other


def read(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, all gradients, and the operations that they took."""
    model.zero_grad()
    torch.manual_seed(1)
    with Ops() as ops:
        found = model(input_ids=IDS, labels=IDS, use_cache=False)
        found.loss.backward()
    return found.logits, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, ops.number


def alike(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-6) -> tuple[int, int]:
    """Both read, and nothing else between them; the operations of each."""
    (logits, gradients, number), (logits_too, gradients_too, number_too) = read(one), read(other)
    torch.testing.assert_close(logits_too, logits, rtol=rtol, atol=atol)
    assert gradients_too.keys() == gradients.keys()
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_too[name], gradient, rtol=rtol, atol=atol, msg=name)
    return number, number_too


def left_to_peft(one: Any, other: Any) -> None:
    number, number_too = alike(one, other, rtol=0, atol=0)
    assert number_too == number


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [{}, {"lora_alpha": 4}, {"use_rslora": True}])
def test_logits_and_gradients_are_pefts_for_fewer_operations(biased: bool, scale: dict[str, Any]) -> None:
    model = llama(biased, **scale)
    theirs, fewer = alike(model, ours(model))
    layers = sum(isinstance(module, Linear) for module in model.modules())
    assert layers == 14
    assert fewer < theirs - 15 * layers


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (0, 3, 32), (2, 1, 2, 32)])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_one_layer(shape: tuple[int, ...], needs_gradient: bool) -> None:
    """Each shape also as it is not laid out in memory, with a gradient that is not, and changed in place afterwards."""
    layer = next(module for module in llama(biased=True).modules() if isinstance(module, Linear))
    for laid_out in (lambda x: x, lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)):
        found = []
        for one in (layer, ours(layer)):
            one.zero_grad()
            x = laid_out(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
            x.requires_grad_(needs_gradient)
            y = one(x)
            y += 1
            (laid_out(y) ** 2).sum().backward()
            found.append([y, x.grad, *(p.grad for p in one.parameters())])
        assert (found[1][1] is not None) == needs_gradient
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-4)


def test_in_bf16_it_is_as_near_to_float32_as_pefts() -> None:
    exact = read(llama())[1]
    model = llama(dtype=torch.bfloat16)
    (logits, theirs, _), (logits_too, gradients, _) = read(model), read(ours(model))
    assert logits_too.dtype == torch.bfloat16
    torch.testing.assert_close(logits_too, logits, rtol=0.05, atol=0.05)
    off = {
        who: sum(((found[name].float() - x) ** 2).sum() for name, x in exact.items()) ** 0.5
        for who, found in (("theirs", theirs), ("ours", gradients))
    }
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients.values())
    assert off["ours"] < 1.1 * off["theirs"] < 0.1 * sum((x**2).sum() for x in exact.values()) ** 0.5


def test_without_gradients_too() -> None:
    model = llama().eval()
    other = ours(model)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant: bool) -> None:
    model = llama()
    other = ours(model)
    plain, fewer = alike(model, other)
    for one in (model, other):
        one.enable_input_require_grads()
        one.gradient_checkpointing_enable({"use_reentrant": reentrant})
    recomputed, fewer_recomputed = alike(model, other)
    assert recomputed > plain
    assert fewer < fewer_recomputed < recomputed


def test_without_its_adapters_it_is_the_base() -> None:
    model = llama()
    other = ours(model)
    with torch.no_grad():
        with model.disable_adapter(), other.disable_adapter():
            torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=0, atol=0)
            base = other(IDS).logits
        assert (other(IDS).logits - base).norm() > 0.1 * base.norm()
    alike(model, other)


def two_adapters(model: Any) -> None:
    model.add_adapter("other", LoraConfig(**ADAPTER))
    stirred(model)
    model.base_model.set_adapter(["default", "other"])


def merged(model: Any) -> None:
    model.merge_adapter()
    model.get_input_embeddings().weight.requires_grad_()  # something to differentiate


@pytest.mark.parametrize("case", ["two adapters", "merged", "dropout", "DoRA", "biases of adapters", "hooks"])
def test_what_is_more_than_plain_is_left_to_peft(case: str) -> None:
    given = {
        "dropout": {"lora_dropout": 0.5},
        "DoRA": {"use_dora": True},
        "biases of adapters": {"lora_bias": True},
    }
    model = llama(biased=True, **given.get(case, {}))
    if case == "two adapters":
        two_adapters(model)
    if case == "merged":
        merged(model)
    other = ours(model)
    if case == "hooks":
        for module in [*model.modules(), *other.modules()]:
            if isinstance(module, Linear):
                module.lora_B["default"].register_forward_hook(lambda module, given, out: 2 * out)
    left_to_peft(model, other)


def test_adapters_in_another_dtype_are_left_to_peft() -> None:
    model = llama(dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    left_to_peft(model, ours(model))


def test_a_bias_that_is_trained_is_left_to_peft() -> None:
    model = llama(biased=True, bias="all")
    left_to_peft(model, ours(model))


def test_under_autocast_it_is_left_to_peft() -> None:
    model = llama()
    other = ours(model)
    with torch.autocast("cpu", torch.bfloat16):
        left_to_peft(model, other)


def test_what_comes_after_is_noticed() -> None:
    """Each call asks anew what the layer is."""
    model = llama(lora_dropout=0.5)
    other = ours(model)
    left_to_peft(model, other)
    theirs, fewer = alike(model.eval(), other.eval())
    assert fewer < theirs
    for one in (model, other):
        torch.manual_seed(3)
        two_adapters(one)
        one.eval()
    left_to_peft(model, other)
    for one in (model, other):
        one.set_adapter("other")
    theirs, fewer = alike(model, other)
    assert fewer < theirs
    for one in (model, other):
        merged(one)
    left_to_peft(model, other)
    for one in (model, other):
        one.unmerge_adapter()
    theirs, fewer = alike(model, other)
    assert fewer < theirs


def test_other_layers_than_torchs_linear_are_left_alone() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = adapted(AutoModelForCausalLM.from_config(config), target_modules=["c_attn"], fan_in_fan_out=True)
    left_to_peft(model, ours(model))


def test_weights_go_with_their_last_user_and_wait_for_no_garbage_collector() -> None:
    layer = ours(next(module for module in llama().modules() if isinstance(module, Linear)))
    layer(torch.randn(2, 32, requires_grad=True)).sum().backward()
    weights, adapter = weakref.ref(layer.base_layer.weight), weakref.ref(layer.lora_A["default"].weight)
    gc.disable()
    try:
        del layer
        assert weights() is None
        assert adapter() is None
    finally:
        gc.enable()


def test_what_is_saved_knows_nothing_of_it(tmp_path: Path) -> None:
    model = llama()
    other = ours(model)
    for one, folder in ((model, tmp_path / "theirs"), (other, tmp_path / "ours")):
        one.save_pretrained(folder)
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    assert (tmp_path / "ours" / weights).read_bytes() == (tmp_path / "theirs" / weights).read_bytes()
    configs = [json.loads((tmp_path / who / config).read_text()) for who in ("ours", "theirs")]
    for one in configs:
        one["target_modules"].sort()  # a set's
    assert configs[0] == configs[1]
    assert other.state_dict().keys() == model.state_dict().keys()


def test_a_base_that_is_unloaded_is_as_it_was() -> None:
    model = llama()
    other = ours(model)
    base = other.unload()
    assert not isinstance(base, PeftModel)
    assert not any(isinstance(module, Linear) for module in base.modules())
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(base(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_trainings_and_scorings_go_this_way(zero_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But no training under ZeRO-3."""
    store, asked = Store.open(str(tmp_path / "store")), list[str]()
    of_layer = lora.OneNodeLinear.forward

    def forward(layer: Any, *args: Any, **rest: Any) -> Any:
        asked.append("training" if layer.training else "scoring")
        return of_layer(layer, *args, **rest)

    monkeypatch.setattr(lora.OneNodeLinear, "forward", forward)
    base, sft, reference, _ = chain(store, number=8)
    session.run([base, sft, reference], store, Placement(device="cpu", threads=1, zero_stage=zero_stage))
    assert set(asked) == ({"training", "scoring"} if zero_stage < 3 else {"scoring"})
