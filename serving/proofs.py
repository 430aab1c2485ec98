"""What an engine proves before it takes traffic: it renders as in training, and every adapter changes the replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from serving.students import PROBES, StudentSet, probe_ids, renderer, rendering_sha256

ALIVE_TOLERANCE = 1e-6  # of a log-probability; an ignored adapter repeats the base's computation exactly
ALIVE_TOKENS = 8

Logprobs = list[tuple[int, float]]  # (token, its log-probability) of each step of a greedy reply


def check_rendering(students: StudentSet) -> None:
    """Tokenizer and template are those of training. Raises ValueError where `rendering_sha256` says otherwise."""
    found = rendering_sha256(renderer(students.base, students.chat_template))
    if students.rendering_sha256 not in (None, found):
        text = f"rendering_sha256 = {students.rendering_sha256}: here it is {found}"
        raise ValueError(f"{text}; serve the tokenizer and chat_template that the student was trained with")


async def prove_rendering(students: StudentSet, chat: Any) -> None:
    """vLLM's chat handler renders the probes to the token ids of `students.renderer`. Raises ValueError."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    render = renderer(students.base, students.chat_template)
    model = next(iter(students.names), students.zero_name)
    for probe in PROBES:
        expected = probe_ids(render, probe)
        if expected is None:
            continue
        request = ChatCompletionRequest(model=model, messages=[dict(message) for message in probe])
        _, inputs = await chat.online_renderer.render_chat(request)
        served = list(inputs[0]["prompt_token_ids"])
        if served != expected:
            text = f"vLLM renders {dict(probe[-1])} to {served}, the tokenizer to {expected}"
            raise ValueError(f"chat_template: {text}")


async def changes_made(
    students: StudentSet, names: Iterable[str], logprobs: Callable[[list[int], str], Awaitable[Logprobs]]
) -> dict[str, float]:
    """How much each named adapter changes the log-probabilities of greedy replies to the probes (infinity: other
    tokens).

    `logprobs(prompt_ids, student)` is called for one prompt at a time, so that base and adapter run the same shapes:
    nothing else may be asked meanwhile.
    """
    render = renderer(students.base, students.chat_template)
    prompts = [ids for ids in (probe_ids(render, probe) for probe in PROBES) if ids is not None]
    base = [await logprobs(prompt, students.zero_name) for prompt in prompts]
    changes = {}
    for name in names:
        tuned = [await logprobs(prompt, name) for prompt in prompts]
        changes[name] = max(_difference(a, b) for a, b in zip(base, tuned, strict=True))
    return changes


def check_alive(name: str, change: float) -> None:
    """Raises ValueError when the adapter changes nothing."""
    if change <= ALIVE_TOLERANCE:
        raise ValueError(
            f"adapter {name!r} changes nothing: its log-probabilities are those of the base; train it longer, or "
            "with a higher learning_rate"
        )


def _difference(base: list[tuple[int, float]], tuned: list[tuple[int, float]]) -> float:
    """Infinity where the greedy tokens part, else the largest change of a log-probability."""
    if [token for token, _ in base] != [token for token, _ in tuned]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(base, tuned, strict=True))
