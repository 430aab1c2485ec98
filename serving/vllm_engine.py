"""vLLM's engine and OpenAI handlers, set up for a set of students. vllm is imported inside the functions only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from serving.adapters import Adapter, max_rank, write_zero_adapter
from serving.students import StudentSet

FREE_AT_START = 0.02
"""vLLM refuses a GPU of which less than this share is free. Its default (0.92) lets no two engines share a GPU, and no
engine start while a training that has ended gives its memory back. How much is taken, kv_cache_gib says."""
INTERNAL_BASE = "the engine's own base"  # never asked for: with adapters, the base answers through the zero adapter


def engine_options(students: StudentSet, adapters: list[Adapter]) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs; the benchmark gives the same to the bare engine."""
    options: dict[str, Any] = {
        "model": students.base,
        "dtype": students.dtype,
        "max_model_len": students.max_model_len,
        "max_num_seqs": students.max_num_seqs,
        "generation_config": "vllm",  # sampling defaults from the request alone; end tokens still come from the folder
        "trust_remote_code": False,
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "seed": 0,
    }
    if students.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(students.kv_cache_gib * 2**30)
    if adapters or students.later:
        everyone = len(adapters) + students.later + 1
        ranks = {adapter.name: adapter.rank for adapter in adapters} | {"that comes later": students.later_rank}
        options |= {
            "enable_lora": True,
            "max_loras": min(everyone, students.max_loras or everyone),
            "max_cpu_loras": everyone,
            "max_lora_rank": max_rank(ranks),
        }
    return options


def set_environment(cpu_threads: int) -> None:
    """vLLM's settings for this process and its children; call it before vllm is imported.

    On a CPU the engine's process itself computes, on `cpu_threads` threads: a worker process costs seconds of imports.
    """
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the CPU platform reads it as "no worker process"
        "OMP_NUM_THREADS": str(cpu_threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiles itself with nvcc at an engine's start; cannot sample by seed
        "DO_NOT_TRACK": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_SERVER_DEV_MODE": "0",
    }
    # The engine's process keeps what it frees, where glibc would give it back to the kernel at each step.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))


def start(students: StudentSet, adapters: list[Adapter], max_new_tokens: int | None = None) -> Any:
    """vLLM's engine. `max_new_tokens`: the most that its OpenAI handlers write; to less than that, what the prompt
    leaves of the context bounds a request that names no limit."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    device = current_platform.device_type
    if students.device not in (None, device):
        raise ValueError(f"device = {students.device!r}: the vLLM that is installed runs on {device!r}")
    with_adapters = bool(adapters) or students.later > 0
    options = engine_options(students, adapters) | device_options(device, students, with_adapters)
    if max_new_tokens is not None:
        options["override_generation_config"] = {"max_new_tokens": max_new_tokens}
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**options))


def device_options(device: str, students: StudentSet, with_adapters: bool) -> dict[str, Any]:
    """What of EngineArgs depends on the device."""
    if device == "cpu":
        grouped = {"worker_extension_cls": "serving.cpu_lora.CpuLora"} if with_adapters else {}
        return {"enforce_eager": True} | grouped
    options: dict[str, Any] = {}
    if students.kv_cache_gib is not None:
        options["gpu_memory_utilization"] = FREE_AT_START
    if students.dtype == "float32" and with_adapters:
        options |= {"worker_extension_cls": "serving.float32_lora.Float32Lora", "enforce_eager": True}
    return options


class Loras:
    """The adapters that an engine has loaded, by student.

    `requests`: student name -> LoRARequest; the base's (`zero_name`) is the zero adapter, there from the first adapter
    on. Empty while no adapter is loaded: the base then answers by itself.
    """

    def __init__(self, engine: Any, zero_name: str):
        self._engine, self._zero_name = engine, zero_name
        self.requests: dict[str, Any] = {}
        self._numbers = count(1)

    async def add(self, adapters: Sequence[Adapter]) -> None:
        """Load them. The caller sees to it that one call ends before the next begins."""
        if adapters and not self.requests:
            with tempfile.TemporaryDirectory(prefix="zero-adapter-") as folder:  # the engine keeps its tensors
                await self._load(self._zero_name, write_zero_adapter(adapters, Path(folder)))
        for adapter in adapters:
            await self._load(adapter.name, adapter.folder)

    async def _load(self, name: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(name, next(self._numbers), str(folder))
        await self._engine.add_lora(lora)
        self.requests[name] = lora

    async def remove(self, name: str) -> None:
        """Unload one: its room is free."""
        await self._engine.remove_lora(self.requests.pop(name).lora_int_id)


def openai_handlers(engine: Any, students: StudentSet, loras: dict[str, Any]) -> tuple[Any, Any]:
    """vLLM's chat and completion handlers over this engine, with the pinned template and these students."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.online_renderer import OnlineRenderer

    base_name = INTERNAL_BASE if loras else students.zero_name
    models = OpenAIServingModels(engine, [BaseModelPath(base_name, students.base)])
    models.lora_requests.update(loras)
    online = OnlineRenderer(
        engine.model_config,
        engine.renderer,
        request_logger=None,
        chat_template=students.chat_template,
        chat_template_content_format="string",
    )
    chat = OpenAIServingChat(
        engine,
        models,
        "assistant",
        online_renderer=online,
        request_logger=None,
        chat_template=students.chat_template,
        chat_template_content_format="string",
    )
    return chat, OpenAIServingCompletion(engine, models, online_renderer=online, request_logger=None)
