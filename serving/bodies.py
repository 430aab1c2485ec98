"""What a request to the endpoint may hold: known fields, within bounds; everything else is refused with its name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SHARED_FIELDS = {
    "model", "stream", "stream_options", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "user", "metadata", "return_token_ids",
}  # fmt: skip
ROLES = ("system", "user", "assistant")
FIELDS = {
    "/v1/chat/completions": SHARED_FIELDS
    | {"messages", "max_completion_tokens", "logprobs", "top_logprobs", "response_format"},
    "/v1/completions": SHARED_FIELDS | {"prompt", "logprobs"},
}


@dataclass(frozen=True)
class Limits:
    """max_new_tokens: the most that a request may name; one that names none gets as many, or what its prompt leaves of
    the model's context where that is less. body_wait_s: for the whole body to arrive."""

    max_body_bytes: int = 1 << 20
    max_n: int = 4
    max_new_tokens: int = 1024
    max_stops: int = 16
    body_wait_s: float = 10.0
    retry_after_s: int = 1


class Refused(Exception):
    """An answer that is an error in OpenAI's form."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers or {}

    @property
    def body(self) -> Json:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.status}}


def checked(path: str, body: Json, names: Collection[str], limits: Limits) -> Json:
    """The body that goes on to the engine: known fields only, every bound kept. Raises Refused(400 or 404)."""
    unknown = sorted(set(body) - FIELDS[path])
    if unknown:
        known = ", ".join(sorted(FIELDS[path]))
        raise Refused(400, f"{', '.join(unknown)}: not taken here; the fields are {known}")
    if body.get("model") not in names:
        raise Refused(404, f"model = {body.get('model')!r} is not served; choose one of {', '.join(names)}")
    replies = _prompts(path, body) * _whole(body, "n", 1)
    if replies > limits.max_n:
        raise Refused(400, f"n x prompts = {replies}: at most {limits.max_n} replies a request")
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > limits.max_stops:
        raise Refused(400, f"stop: at most {limits.max_stops} strings")
    for name in ("max_tokens", "max_completion_tokens"):
        if _whole(body, name, 1) > limits.max_new_tokens:
            raise Refused(400, f"{name} = {body[name]}: at most {limits.max_new_tokens}")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")  # None: the engine knows what the prompt leaves
    messages = {"messages": _messages(body)} if path == "/v1/chat/completions" else {}
    return body | messages | {"max_tokens": limit}


def _prompts(path: str, body: Json) -> int:
    """How many prompts the body holds. Raises Refused(400) for what is none."""
    if path == "/v1/chat/completions":
        return 1
    prompt = body.get("prompt")
    if isinstance(prompt, str) and prompt:
        return 1
    if not isinstance(prompt, list) or not prompt:
        raise Refused(400, "prompt: a string, a list of token ids, or a list of these")
    return 1 if all(isinstance(token, int) for token in prompt) else len(prompt)


def _messages(body: Json) -> list[Json]:
    """The messages, reduced to role and text. Raises Refused(400)."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise Refused(400, "messages: a list of at least one {role, content}")
    for i, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise Refused(400, f"messages.{i}.role = {message.get('role')!r}: one of {', '.join(ROLES)}")
    return [{"role": message["role"], "content": _text(i, message)} for i, message in enumerate(messages)]


def _text(i: int, message: Json) -> str:
    """A message's content: a string, or OpenAI's list of text parts, joined by line ends as vLLM does."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    said = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    texts = [text for text in said if isinstance(text, str)]
    if not texts or len(texts) != len(parts or []):
        raise Refused(400, f"messages.{i}.content: a string, or a list of {{type: text, text}}")
    return "\n".join(texts)


def _whole(body: Json, name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refused(400, f"{name} = {value!r}: a whole number of at least 1")
    return value


def is_first_reply(path: str, body: Json) -> bool:
    """A conversation without an assistant's turn; a bare completion does not tell, so it counts as first."""
    return path != "/v1/chat/completions" or all(message.get("role") != "assistant" for message in body["messages"])
