"""What an engine is started with on each device."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from serving import vllm_engine
from serving.students import StudentSet

SET = StudentSet("base", "{{ messages }}", dtype="bfloat16", kv_cache_gib=2)


def test_on_a_cpu_nothing_is_compiled() -> None:
    assert vllm_engine.device_options("cpu", SET, with_adapters=False) == {"enforce_eager": True}
    assert vllm_engine.device_options("cpu", SET, with_adapters=True)["enforce_eager"] is True


def test_on_a_gpu_the_kv_cache_says_what_is_taken_so_that_engines_can_share_it() -> None:
    assert vllm_engine.engine_options(SET, [])["kv_cache_memory_bytes"] == 2 * 2**30
    assert vllm_engine.device_options("cuda", SET, with_adapters=True) == {"gpu_memory_utilization": 0.02}
    left_to_vllm = replace(SET, kv_cache_gib=None)
    assert vllm_engine.device_options("cuda", left_to_vllm, with_adapters=True) == {}


@pytest.mark.parametrize(("dtype", "with_adapters", "plain"), [("float32", True, True), ("float32", False, False)])
def test_float32_adapters_on_a_gpu_take_the_plain_kernels(dtype: str, with_adapters: bool, plain: bool) -> None:
    found = vllm_engine.device_options("cuda", replace(SET, dtype=dtype), with_adapters)
    assert ("worker_extension_cls" in found) is ("enforce_eager" in found) is plain


def test_the_plain_kernels_are_what_its_worker_takes_and_leave_rows_alone_that_are_nobodys() -> None:
    """In a process of its own: importing the extension changes vLLM's platform there."""
    script = (
        "from vllm.utils.import_utils import resolve_obj_by_qualname as resolve\n"
        "from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase\n"
        "from vllm.platforms import current_platform\n"
        "type(current_platform).get_punica_wrapper = classmethod(lambda cls: 'gone')\n"
        "from serving.students import StudentSet\n"
        "from serving.vllm_engine import device_options\n"
        "options = device_options('cuda', StudentSet('b', 't', dtype='float32'), True)\n"
        "extension = resolve(options['worker_extension_cls'])\n"
        "assert [name for name in vars(extension) if not name.startswith('__')] == []\n"
        "kernels = resolve(current_platform.get_punica_wrapper())\n"
        "assert issubclass(kernels, PunicaWrapperBase)\n"
    )
    in_a_process(script + MORE_LOGITS_THAN_SAMPLED_TOKENS)


def test_on_a_cpu_adapters_change_rows_as_vllms_own_kernels_do_and_leave_those_of_nobody_alone() -> None:
    script = (
        "from vllm.utils.import_utils import resolve_obj_by_qualname as resolve\n"
        "from vllm.platforms import current_platform\n"
        "from serving.students import StudentSet\n"
        "from serving.vllm_engine import device_options\n"
        "resolve(device_options('cpu', StudentSet('b', 't', dtype='float32'), True)['worker_extension_cls'])\n"
        "kernels = resolve(current_platform.get_punica_wrapper())\n"
        "assert kernels.__module__ == 'serving.cpu_lora'\n"
    )
    in_a_process(script + FUSED_LAYER_OF_THREE_ADAPTERS)


FUSED_LAYER_OF_THREE_ADAPTERS = """
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

torch.manual_seed(0)
slices, rank, hidden = (6, 4, 4), 3, 5
a = tuple(torch.randn(3, 1, rank, hidden) for _ in slices)
b = tuple(torch.randn(3, 1, size, rank) for size in slices)
for prefill in (True, False):
    for rows in ((1, 1, 2, 2, 2, 3), (3, 1, 3, 2, 1, 1), (2,), (1, 1, 1)):
        for scale in (1.0, 0.5):
            mapping = LoRAMapping(rows, rows, is_prefill=prefill)
            x, before = torch.randn(len(rows), hidden), torch.randn(len(rows), sum(slices))
            found = []
            for made in (kernels, PunicaWrapperCPU):
                wrapper = made(max_num_batched_tokens=16, max_batches=8, device="cpu")
                wrapper.update_metadata(mapping, [1, 2, 3], 3, 5)
                found.append(before.clone())
                wrapper.add_lora_linear(found[-1], x, a, b, scale, slices)
            torch.testing.assert_close(found[0], found[1])
            assert not torch.allclose(found[0], before)
wrapper = kernels(max_num_batched_tokens=16, max_batches=8, device="cpu")
wrapper.update_metadata(LoRAMapping((0, 2, 0), (0, 2, 0), is_prefill=True), [1, 2, 3], 3, 5)
x, y = torch.randn(3, hidden), torch.zeros(3, sum(slices))
wrapper.add_lora_linear(y, x, a, b, 1.0, slices)
assert torch.equal(y[[0, 2]], torch.zeros(2, sum(slices)))
torch.testing.assert_close(y[1, 6:10], b[1][1, 0] @ a[1][1, 0] @ x[1])
"""


MORE_LOGITS_THAN_SAMPLED_TOKENS = """
import torch
from vllm.lora.layers import LoRAMapping

plain = kernels(max_num_batched_tokens=16, max_batches=8, device="cpu")
plain.update_metadata(LoRAMapping((1, 2), (1, 2), is_prefill=True), [1, 2], 2, 5)
torch.manual_seed(0)
a, b = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 5, 3)  # adapters, 1, (rank, hidden) and (vocabulary, rank)
x, before = torch.randn(4, 4), torch.randn(4, 5)
after = before.clone()
plain.add_lora_logits(after, x, a, b, 0.5)
for row in (0, 1):
    torch.testing.assert_close(after[row], before[row] + 0.5 * b[row, 0] @ a[row, 0] @ x[row])
assert torch.equal(after[2:], before[2:])
"""


def in_a_process(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
