"""The endpoint's door, driven as an ASGI application over a small backend in this process."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serving.bodies import FIELDS, Limits
from serving.gateway import DISCLOSURE, Busy, Gateway, Unavailable

KEY = "correct horse battery"
CHAT = "/v1/chat/completions"
EVENTS = ['data: {"id": "1", "choices": []}\n\n', 'data: {"id": "1", "choices": [2]}\n\n', "data: [DONE]\n\n"]


class Scripted:
    """Answers what it was told to: items are yielded, exceptions raised. Keeps what it was asked."""

    names = ("base", "tuned")

    def __init__(self, *script: Any):
        self.script, self.asked, self.closed, self.gate = script, [], False, asyncio.Event()

    async def healthy(self) -> bool:
        return self.script != ("ill",)

    async def answer(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        self.asked.append((path, body))
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if item == "wait":
                    await self.gate.wait()
                else:
                    yield item
        finally:
            self.closed = True


class Answer:
    def __init__(self, messages: list[dict[str, Any]]):
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message["body"] for message in messages[1:])
        self.whole = not messages[-1].get("more_body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        return [event for event in self.body.decode().split("\n\n") if event]


async def ask(backend: Scripted, body: Any = None, path: str = CHAT, **options: Any) -> Answer:
    """One request. options: method, key, headers, chunks (raw body), limits, disclosure, leave (after the body)."""
    sent: list[dict[str, Any]] = []
    chunks = options.get("chunks", [json.dumps(body).encode() if body is not None else b""])
    incoming = [{"type": "http.request", "body": c, "more_body": i < len(chunks) - 1} for i, c in enumerate(chunks)]
    read: list[int] = []

    async def receive() -> dict[str, Any]:
        if incoming:
            read.append(1)
            return incoming.pop(0)
        if not options.get("leave"):
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    key = options.get("key", KEY)
    headers = [(b"authorization", f"Bearer {key}".encode())] if key is not None else []
    scope = {
        "type": "http",
        "path": path,
        "method": options.get("method", "POST" if path.endswith("completions") else "GET"),
        "headers": headers + options.get("headers", []),
    }
    gateway = Gateway(backend, KEY, options.get("limits"), options.get("disclosure", DISCLOSURE))
    await asyncio.wait_for(gateway(scope, receive, send), 5)
    backend.bodies_read = len(read)  # type: ignore[attr-defined]
    return Answer(sent) if sent else None  # type: ignore[return-value]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tuned", "messages": [{"role": "user", "content": "hello"}]} | fields


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/models", "/health", "/v1/embeddings", "/", "/-/routes"])
@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1]])
async def test_without_the_key_every_path_is_401_before_the_body_is_read(path: str, key: str | None) -> None:
    backend = Scripted(200, {})
    answer = await ask(backend, chat(), path, key=key)
    assert (answer.status, backend.asked, backend.bodies_read) == (401, [], 0)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.body.decode()


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/-/healthz", "/-/routes", "/v1/load_lora_adapter", "/v1/models/base", "/pause"]
)
async def test_only_the_listed_paths_are_let_through(path: str) -> None:
    backend = Scripted(200, {})
    assert (await ask(backend, chat(), path, method="POST")).status == 404
    assert backend.asked == []


async def test_a_listed_path_takes_one_method() -> None:
    answer = await ask(Scripted(), None, CHAT, method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_models_and_health() -> None:
    assert [card["id"] for card in (await ask(Scripted(), None, "/v1/models")).json["data"]] == ["base", "tuned"]
    assert (await ask(Scripted(), None, "/health")).status == 200
    assert (await ask(Scripted("ill"), None, "/health")).status == 503


async def test_a_body_over_the_limit_is_413_by_its_announced_length_without_reading() -> None:
    backend = Scripted(200, {})
    limits = Limits(max_body_bytes=100)
    answer = await ask(backend, chunks=[b"x" * 50], headers=[(b"content-length", b"101")], limits=limits)
    assert (answer.status, backend.bodies_read, backend.asked) == (413, 0, [])


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"9" * 5_000, 413), (b"0" * 5_000 + b"101", 413), (b"0" * 5_000 + b"100", 404), (b"-1", 400), (b"", 400),
     (b"1e2", 400), ("²".encode("latin-1"), 400)],
)  # fmt: skip
async def test_an_announced_length_of_any_shape_is_answered(length: bytes, status: int) -> None:
    headers, body = [(b"content-length", length)], b'{"model": "no such"}'
    answer = await ask(Scripted(200, {}), chunks=[body], headers=headers, limits=Limits(max_body_bytes=100))
    assert answer.status == status


async def test_a_chunked_body_over_the_limit_is_413_as_soon_as_it_passes_it() -> None:
    backend = Scripted(200, {})
    answer = await ask(backend, chunks=[b"x" * 60] * 10, limits=Limits(max_body_bytes=100))
    assert (answer.status, backend.bodies_read, backend.asked) == (413, 2, [])


async def test_a_body_that_drips_is_408() -> None:
    backend = Scripted(200, {})

    async def never() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": headers}
    await Gateway(backend, KEY, Limits(body_wait_s=0.05))(scope, never, send)
    assert (Answer(sent).status, backend.asked) == (408, [])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (chat(n=5), "at most 4"),
        (chat(n=10_000), "at most 4"),
        (chat(n=0), "n = 0"),
        (chat(n="2"), "n = '2'"),
        (chat(max_tokens=1025), "max_tokens = 1025"),
        (chat(max_completion_tokens=10**9), "max_completion_tokens = 1000000000"),
        (chat(max_tokens=True), "max_tokens = True"),
        (chat(messages=[]), "messages"),
        (chat(messages="hello"), "messages"),
        (chat(messages=["hello"]), "messages"),
        (chat(messages=[{"role": "user"}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content"),
        (chat(messages=[{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]), "messages.1.role"),
        (chat(stop=["a"] * 17), "stop"),
        (chat(chat_template="{{ 1 }}"), "chat_template"),
        (chat(use_beam_search=True, best_of=10_000), "best_of, use_beam_search"),
        ([1, 2], "object"),
        ("x", "object"),
    ],
)
async def test_what_is_out_of_bounds_is_400_and_says_why(body: Any, says: str) -> None:
    backend = Scripted(200, {})
    answer = await ask(backend, body)
    assert (answer.status, backend.asked) == (400, [])
    assert says in answer.json["error"]["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_what_is_not_json_is_400(raw: bytes) -> None:
    assert (await ask(Scripted(200, {}), chunks=[raw])).status == 400


async def test_many_prompts_count_like_n() -> None:
    body = {"model": "base", "prompt": ["a"] * 3, "n": 2}
    assert (await ask(Scripted(200, {}), body, "/v1/completions")).status == 400
    body = {"model": "base", "prompt": [1, 2, 3, 4, 5, 6]}  # token ids of one prompt
    assert (await ask(Scripted(200, {}), body, "/v1/completions")).status == 200


@pytest.mark.parametrize("model", [None, "", "unknown", 7])
async def test_an_unknown_model_is_404_and_names_those_there_are(model: Any) -> None:
    answer = await ask(Scripted(200, {}), chat(model=model))
    assert answer.status == 404
    assert "base, tuned" in answer.json["error"]["message"]


async def test_a_request_without_max_tokens_leaves_them_to_the_engine() -> None:
    """Which knows how many the prompt leaves; a number of ours would be refused where it leaves fewer."""
    backend = Scripted(200, {})
    await ask(backend, chat(), limits=Limits(max_new_tokens=77))
    assert backend.asked[0][1]["max_tokens"] is None
    await ask(backend, chat(max_completion_tokens=5))
    assert backend.asked[1][1]["max_tokens"] == 5


async def test_messages_go_on_as_role_and_text_only() -> None:
    backend = Scripted(200, {})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await ask(backend, chat(messages=[{"role": "user", "content": parts, "name": "x", "tool_calls": [1]}]))
    assert backend.asked[0][1]["messages"] == [{"role": "user", "content": "a\nb"}]


async def test_the_first_reply_says_that_it_comes_from_an_ai() -> None:
    answer = await ask(Scripted(200, {"id": "1"}), chat())
    assert answer.json == {"id": "1", "metadata": {"ai_disclosure": DISCLOSURE}}
    assert answer.headers["x-ai-disclosure"] == DISCLOSURE


async def test_a_later_reply_does_not_repeat_it() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    answer = await ask(Scripted(200, {"id": "1"}), chat(messages=turns))
    assert answer.json == {"id": "1"}
    assert "x-ai-disclosure" not in answer.headers


async def test_a_stream_says_it_in_its_header_and_first_event() -> None:
    answer = await ask(Scripted(200, *EVENTS), chat(stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-ai-disclosure"] == DISCLOSURE
    first = json.loads(answer.events[0].removeprefix("data: "))
    assert first == {"id": "1", "choices": [], "metadata": {"ai_disclosure": DISCLOSURE}}
    assert answer.events[1:] == [event.strip() for event in EVENTS[1:]]
    assert answer.whole


async def test_a_disclosure_in_another_script_travels_percent_encoded_in_the_header() -> None:
    answer = await ask(Scripted(200, {}), chat(), disclosure="Ich bin eine KI – kein Mensch")
    assert answer.headers["x-ai-disclosure"] == "Ich bin eine KI %E2%80%93 kein Mensch"
    assert answer.json["metadata"]["ai_disclosure"] == "Ich bin eine KI – kein Mensch"


async def test_an_engines_error_is_passed_on_with_its_status() -> None:
    answer = await ask(Scripted(400, {"error": {"message": "too long"}}), chat())
    assert (answer.status, answer.json) == (400, {"error": {"message": "too long"}})


@pytest.mark.parametrize("error", [Busy("64 wait already"), Unavailable("the engine died")])
async def test_an_engine_that_is_full_or_gone_is_503_with_retry_after(error: Exception) -> None:
    answer = await ask(Scripted(error), chat())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert str(error) in answer.json["error"]["message"]


async def test_an_engine_lost_inside_a_stream_ends_it_with_an_error_event_and_no_done() -> None:
    answer = await ask(Scripted(200, EVENTS[0], EVENTS[1], Unavailable("the engine died")), chat(stream=True))
    assert answer.status == 200
    assert len(answer.events) == 3
    assert json.loads(answer.events[-1].removeprefix("data: "))["error"]["message"] == "the engine died"
    assert "[DONE]" not in answer.body.decode()


@pytest.mark.parametrize("script", [(200, EVENTS[0], "wait"), ("wait",)])
async def test_a_client_that_leaves_ends_the_generation(script: tuple[Any, ...]) -> None:
    backend = Scripted(*script)
    await ask(backend, chat(stream=True), leave=True)
    assert backend.closed


@pytest.mark.parametrize("key", ["", "  \n"])
def test_it_does_not_start_without_a_key(key: str) -> None:
    with pytest.raises(ValueError, match="api key"):
        Gateway(Scripted(), key)


def test_no_field_lets_a_caller_change_the_template_or_the_adapters() -> None:
    dangerous = {"chat_template", "chat_template_kwargs", "kv_transfer_params", "vllm_xargs", "logits_processors"}
    assert not dangerous & (FIELDS[CHAT] | FIELDS["/v1/completions"])
