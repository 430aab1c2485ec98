"""One vLLM engine with its students, as a Ray Serve deployment: bulk generation and the endpoint call the same replica.

Every request, the base's too, goes through a LoRA slot when the engine has any (see `adapters.write_zero_adapter`).
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from serving import vllm_engine
from serving.adapters import check_base, read_adapter
from serving.bulk import Completion, StudentRequest, Unanswered
from serving.diagnosis import EngineFailed, OwnLog, diagnose
from serving.owners import end_if_orphaned
from serving.proofs import ALIVE_TOKENS, Logprobs, changes_made, check_alive, check_rendering, prove_rendering
from serving.students import StudentSet

OWNER_LOOK_S = 10.0
ENGINE_DIED = 70  # exit status of a replica whose engine process died: Serve starts a new one at once


class StudentEngine:
    """The deployment's class. What a user can mend (a bad adapter, another template) is raised by `ready`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, students: StudentSet, cpu_threads: int = 1, max_new_tokens: int | None = None
    ) -> None:
        started = time.monotonic()
        vllm_engine.set_environment(cpu_threads)
        self.students = students
        self.refusal: str | None = None
        self.alive: dict[str, float] = {}
        log = OwnLog()
        try:
            await self._start(max_new_tokens)
        except Exception as error:  # whatever vLLM raises: it is told as what it means
            found = diagnose(error, log.text())
            if not found.lasting:  # Serve tries again; it hands on the text when it gives up
                raise EngineFailed(found.text) from error
            self.refusal = found.text  # told by `ready`: raised here, Serve would try three times
        self._looked_s = time.monotonic()
        self.start_s = time.monotonic() - started

    async def _start(self, max_new_tokens: int | None) -> None:
        base = Path(self.students.base)
        check_base(base)
        adapters = [read_adapter(name, Path(path), base) for name, path in self.students.adapters.items()]
        check_rendering(self.students)
        self.engine = vllm_engine.start(self.students, adapters, max_new_tokens)
        self._loading = asyncio.Lock()
        self.loras = vllm_engine.Loras(self.engine, self.students.zero_name)
        await self.loras.add(adapters)
        self.chat, self.completion = vllm_engine.openai_handlers(self.engine, self.students, self.loras.requests)
        await prove_rendering(self.students, self.chat)
        if adapters:
            self.alive = await changes_made(self.students, self.students.adapters, self._logprobs)
        for name, change in self.alive.items():
            check_alive(name, change)

    async def ready(self) -> dict[str, Any]:
        """What started: start_s, alive (largest change of a log-probability by adapter), names, pid; refusal: why
        nothing is served, else None."""
        said = {"start_s": self.start_s, "alive": self.alive, "names": self.students.names, "pid": os.getpid()}
        return said | {"refusal": self.refusal}

    async def check_health(self) -> None:
        """Serve's probe, every second: a replica whose engine is dead is replaced, one whose driver is gone ends."""
        if self.refusal is None and self.engine.errored:
            os._exit(ENGINE_DIED)
        if time.monotonic() - self._looked_s > OWNER_LOOK_S:
            self._looked_s = time.monotonic()
            await asyncio.to_thread(end_if_orphaned)

    async def unfinished(self) -> int:
        """Requests inside the engine now."""
        return int(self.engine.get_num_unfinished_requests())

    def _check_ready(self) -> None:
        if self.refusal is not None:
            raise ValueError(self.refusal)

    # ---- bulk generation

    async def load(self, adapters: dict[str, str]) -> dict[str, float | str]:
        """Take more students: name -> LoRA folder. By name, how much it changes (as in `ready`), or why it is refused.

        While nothing else is asked: else a change could be that of another batch's shape.
        """
        self._check_ready()
        said: dict[str, float | str] = {}
        async with self._loading:
            for name, folder in adapters.items():
                try:
                    await self._add(name, folder)
                    said[name] = await self._change(name)
                except ValueError as error:  # this adapter's own fault: the others are loaded all the same
                    said[name] = str(error)
                    if name in self.loras.requests:
                        await self.loras.remove(name)
        return said

    async def _change(self, name: str) -> float:
        """How much a loaded adapter changes. Raises ValueError where it is nothing."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            (change,) = (await changes_made(self.students, [name], self._logprobs)).values()
        except EngineDeadError:
            os._exit(ENGINE_DIED)
        check_alive(name, change)
        return change

    async def _add(self, name: str, folder: str) -> None:
        """Load one adapter that is not loaded yet. Raises ValueError, naming it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if name in self.loras.requests:
            return
        if len(self.loras.requests) > len(self.students.adapters) + self.students.later:  # the zero adapter is another
            raise ValueError(f"adapter {name!r}: later = {self.students.later}, and so many are loaded")
        # In a thread: it may hash the base's weights, and Serve takes a replica that is silent for dead.
        adapter = await asyncio.to_thread(read_adapter, name, Path(folder), Path(self.students.base))
        try:
            await self.loras.add([adapter])
        except EngineDeadError:
            os._exit(ENGINE_DIED)
        except Exception as error:  # what its process raised, vLLM hands on as the bare class
            raise ValueError(f"adapter {name!r}: {error}") from error

    async def generate(
        self, requests: list[StudentRequest], adapters: dict[str, str] | None = None
    ) -> list[Completion | Unanswered]:
        """Answer a chunk of requests, in their order; one that cannot be answered becomes Unanswered.

        `adapters`: name -> LoRA folder of those that `load` has proved. A replica that was started since loads them.
        """
        self._check_ready()
        async with self._loading:
            for name, folder in (adapters or {}).items():
                await self._add(name, folder)
        return list(await asyncio.gather(*(self._generate(request) for request in requests)))

    async def _generate(self, request: StudentRequest) -> Completion | Unanswered:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if request.student not in self.loras.requests:
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
        lora = self.loras.requests.get(student)
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

    async def _logprobs(self, prompt_ids: list[int], student: str) -> Logprobs:
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
