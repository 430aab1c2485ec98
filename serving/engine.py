"""One vLLM engine with its students, as a Ray Serve deployment: bulk generation and the endpoint call the same replica.

Every request, the base's too, goes through a LoRA slot when the engine has any (see `adapters.write_zero_adapter`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from serving.adapters import Adapter, check_base, max_rank, read_adapter, write_zero_adapter
from serving.bulk import Completion, StudentRequest, Unanswered
from serving.students import PROBES, StudentSet, probe_ids, renderer, rendering_sha256

ENGINE_DIED = 70  # exit status of a replica whose engine process died: Serve starts a new one at once
ALIVE_TOLERANCE = 1e-6  # of a log-probability; an ignored adapter repeats the base's computation exactly
ALIVE_TOKENS = 8
INTERNAL_BASE = "the engine's own base"  # never asked for: with adapters, the base answers through the zero adapter

log = logging.getLogger("ray.serve")


class StudentEngine:
    """The deployment's class. What a user can mend (a bad adapter, another template) is raised by `ready`."""

    async def __init__(self, students: StudentSet, cpu_threads: int | None = None) -> None:
        started = time.monotonic()
        set_environment(cpu_threads)
        self.students = students
        self.refusal: str | None = None
        self.alive: dict[str, float] = {}
        try:
            await self._start()
        except ValueError as error:
            # Told by `ready`: raised here, Serve would try three times and bury the message.
            self.refusal = str(error)
        self.start_s = time.monotonic() - started

    async def _start(self) -> None:
        base = Path(self.students.base)
        check_base(base)
        adapters = [read_adapter(name, Path(path), base) for name, path in self.students.adapters.items()]
        self.engine = _start_engine(self.students, adapters)
        self.loras = await _load_adapters(self.engine, self.students, adapters)
        self.chat, self.completion = _openai_serving(self.engine, self.students, self.loras)
        await self._prove_rendering()
        await self._prove_alive()

    async def ready(self) -> dict[str, Any]:
        """What started: start_s, alive (largest change of a log-probability by adapter), names, pid.

        Raises ValueError when the students were refused.
        """
        self._check_ready()
        return {"start_s": self.start_s, "alive": self.alive, "names": self.students.names, "pid": os.getpid()}

    async def check_health(self) -> None:
        """Serve's probe: raises when the engine is dead, and the replica is replaced."""
        if self.refusal is None and self.engine.errored:
            os._exit(ENGINE_DIED)

    async def unfinished(self) -> int:
        """Requests inside the engine now."""
        return int(self.engine.get_num_unfinished_requests())

    def _check_ready(self) -> None:
        if self.refusal is not None:
            raise ValueError(self.refusal)

    # ---- bulk generation

    async def generate(self, requests: list[StudentRequest]) -> list[Completion | Unanswered]:
        """Answer a chunk of requests, in their order; one that cannot be answered becomes Unanswered."""
        self._check_ready()
        return list(await asyncio.gather(*(self._generate(request) for request in requests)))

    async def _generate(self, request: StudentRequest) -> Completion | Unanswered:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self.students.check_name(request.student)
            _check_length(request, self.students.max_model_len)
            return await self._final(request)
        except EngineDeadError:
            # Nothing in this process heals that: Serve replaces the replica, callers ask again.
            os._exit(ENGINE_DIED)
        except (ValueError, VLLMClientError) as error:  # this request's own fault, and only its
            return Unanswered(request.id, str(error))

    async def _final(self, request: StudentRequest) -> Completion:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=list(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=request.prompt_ids)
        output = await self._last(prompt, sampling, request.student)
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            raise ValueError(f"the engine ended with finish_reason = {answer.finish_reason!r}")
        ids = list(answer.token_ids)
        return Completion(request.id, answer.text, ids, answer.finish_reason, len(request.prompt_ids), len(ids))

    async def _last(self, prompt: Any, sampling: Any, student: str) -> Any:
        lora = self.loras.get(student)
        outputs = [
            output async for output in self.engine.generate(prompt, sampling, uuid.uuid4().hex, lora_request=lora)
        ]
        return outputs[-1]

    # ---- the endpoint

    async def http(self, path: str, body: dict[str, Any]) -> AsyncIterator[int | dict[str, Any] | str]:
        """Answer one OpenAI request with vLLM's own serving classes.

        Yields the status, then one JSON object or server-sent events. An error inside a stream is its last event:
        vLLM's closing "[DONE]" after it is left out.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        self._check_ready()
        answer = await self._openai(path, body)
        if isinstance(answer, ErrorResponse):
            yield int(answer.error.code)
            yield answer.model_dump()
        elif hasattr(answer, "model_dump"):
            yield 200
            yield answer.model_dump(exclude_none=True)
        else:
            yield 200
            async for event in answer:
                yield event
                if event.startswith('data: {"error"'):
                    return

    async def _openai(self, path: str, body: dict[str, Any]) -> Any:
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.serve import create_error_response
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if path == "/v1/chat/completions":
                return await self.chat.create_chat_completion(ChatCompletionRequest.model_validate(body))
            return await self.completion.create_completion(CompletionRequest.model_validate(body))
        except EngineDeadError:
            os._exit(ENGINE_DIED)
        except ValidationError as error:
            places = (f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
            return create_error_response("; ".join(places))
        except Exception as error:  # noqa: BLE001
            # As in vLLM's own server, where one function turns exceptions of every kind into OpenAI errors.
            return create_error_response(error)

    # ---- proofs before traffic

    async def _prove_rendering(self) -> None:
        """The endpoint renders the probes to the same token ids as `students.renderer`, and as training did."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        render = renderer(self.students.base, self.students.chat_template)
        for probe in PROBES:
            expected = probe_ids(render, probe)
            if expected is None:
                continue
            request = ChatCompletionRequest(model=self.students.names[0], messages=[dict(message) for message in probe])
            _, inputs = await self.chat.online_renderer.render_chat(request)
            served = list(inputs[0]["prompt_token_ids"])
            if served != expected:
                text = f"vLLM renders {dict(probe[-1])} to {served}, the tokenizer to {expected}"
                raise ValueError(f"chat_template: {text}")
        found = rendering_sha256(render)
        if self.students.rendering_sha256 not in (None, found):
            text = f"rendering_sha256 = {self.students.rendering_sha256}: here it is {found}"
            raise ValueError(f"{text}; serve the tokenizer and chat_template that the student was trained with")

    async def _prove_alive(self) -> None:
        """Every adapter changes the log-probabilities of the probes' replies. Raises ValueError naming a dead one."""
        render = renderer(self.students.base, self.students.chat_template)
        prompts = [ids for ids in (probe_ids(render, probe) for probe in PROBES) if ids is not None]
        base = [await self._logprobs(prompt, self.students.base_name) for prompt in prompts]
        for name in self.students.adapters:
            tuned = [await self._logprobs(prompt, name) for prompt in prompts]
            self.alive[name] = max(_difference(a, b) for a, b in zip(base, tuned, strict=True))
            if self.alive[name] <= ALIVE_TOLERANCE:
                raise ValueError(f"adapter {name!r} changes nothing: its log-probabilities are those of the base")

    async def _logprobs(self, prompt_ids: list[int], student: str) -> list[tuple[int, float]]:
        """Greedy (token, log-probability) pairs, one request at a time so that base and adapter run the same shapes."""
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(temperature=0.0, max_tokens=ALIVE_TOKENS, logprobs=1)
        answer = (await self._last(TokensPrompt(prompt_token_ids=prompt_ids), sampling, student)).outputs[0]
        return [(token, step[token].logprob) for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]


def _check_length(request: StudentRequest, max_model_len: int) -> None:
    length = len(request.prompt_ids) + request.max_tokens
    if not request.prompt_ids or request.max_tokens < 1 or length > max_model_len:
        raise ValueError(
            f"prompt of {len(request.prompt_ids)} tokens and max_tokens = {request.max_tokens}: "
            f"both must be at least 1, and together at most max_model_len = {max_model_len}"
        )


def _difference(base: list[tuple[int, float]], tuned: list[tuple[int, float]]) -> float:
    """Infinity where the greedy tokens part, else the largest change of a log-probability."""
    if [token for token, _ in base] != [token for token, _ in tuned]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(base, tuned, strict=True))


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
    if adapters:
        everyone = len(adapters) + 1
        options |= {
            "enable_lora": True,
            "max_loras": min(everyone, students.max_loras or everyone),
            "max_cpu_loras": everyone,
            "max_lora_rank": max_rank(adapters),
        }
    return options


def set_environment(cpu_threads: int | None = None) -> None:
    """vLLM's settings for this process and its children; call it before vllm is imported.

    On a CPU the engine's process itself computes, on `cpu_threads` threads: a worker process costs seconds of imports.
    """
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the CPU platform reads it as "no worker process"
        "OMP_NUM_THREADS": str(cpu_threads or len(os.sched_getaffinity(0))),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_SERVER_DEV_MODE": "0",
    }


def _start_engine(students: StudentSet, adapters: list[Adapter]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    device = current_platform.device_type
    if students.device not in (None, device):
        raise ValueError(f"device = {students.device!r}: the vLLM that is installed runs on {device!r}")
    eager = {"enforce_eager": True} if device == "cpu" else {}
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_options(students, adapters), **eager))


async def _load_adapters(engine: Any, students: StudentSet, adapters: list[Adapter]) -> dict[str, Any]:
    """Student name -> LoRARequest; the base's is the zero adapter. Empty for an engine without adapters."""
    if not adapters:
        return {}
    from vllm.lora.request import LoRARequest

    zero = write_zero_adapter(adapters, Path(tempfile.mkdtemp(prefix="zero-adapter-")))
    folders = {students.base_name: zero, **{adapter.name: adapter.folder for adapter in adapters}}
    loras = {name: LoRARequest(name, number, str(folder)) for number, (name, folder) in enumerate(folders.items(), 1)}
    for lora in loras.values():
        await engine.add_lora(lora)
    return loras


def _openai_serving(engine: Any, students: StudentSet, loras: dict[str, Any]) -> tuple[Any, Any]:
    """vLLM's chat and completion handlers over this engine, with the pinned template and these students."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers.online_renderer import OnlineRenderer

    base_name = INTERNAL_BASE if loras else students.base_name
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
