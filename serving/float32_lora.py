"""Adapters of float32 students on a GPU.

vLLM's CUDA kernels for LoRA refuse every type but float16 and bfloat16 (a bare assertion, while the engine starts). Its
plain-torch ones, written for CPUs, compute on whatever device the tensors are. They run eagerly: they cannot be
captured in a CUDA graph. An engine imports this module in its worker, before it loads the model: see
`vllm_engine.device_options`.
"""

from __future__ import annotations

from typing import Any

from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


class PlainLora(PunicaWrapperCPU):  # type: ignore[misc]  # vllm has no types of its own
    """vLLM's plain-torch kernels, under a GPU's model runner."""

    def add_lora_logits(self, y: Any, x: Any, *weights: Any, **rest: Any) -> None:
        """Only of the rows (y: (rows, vocabulary), x: (rows, hidden)) that stand for a sampled token.

        An engine on a GPU warms up with requests for `prompt_logprobs`, and so asks for the logits of whole prompts:
        rows past those of which it has said whose adapter they are. vLLM's CUDA kernels leave such rows as they are.
        """
        sampled = len(self.sampler_indices)
        super().add_lora_logits(y[:sampled], x[:sampled], *weights, **rest)


class Float32Lora:
    """Mixed into vLLM's worker as its `worker_extension_cls`; it adds nothing there."""


# The platform names the kernels, and there is no option for them.
setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda cls: f"{__name__}.PlainLora"))  # noqa: B010
