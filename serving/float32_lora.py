"""Adapters of float32 students on a GPU.

vLLM's CUDA kernels for LoRA refuse every type but float16 and bfloat16 (a bare assertion, while the engine starts). Its
plain-torch ones, written for CPUs, compute on whatever device the tensors are. They run eagerly: they cannot be
captured in a CUDA graph. An engine imports this module in its worker, before it loads the model: see
`vllm_engine.device_options`.
"""

from __future__ import annotations

from vllm.platforms import current_platform

PLAIN = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"


class Float32Lora:
    """Mixed into vLLM's worker as its `worker_extension_cls`; it adds nothing there."""


# The platform names the kernels, and there is no option for them.
setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda cls: PLAIN))  # noqa: B010
