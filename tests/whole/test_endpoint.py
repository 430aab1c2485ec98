"""The endpoint on a real engine, asked by the openai client and by raw HTTP: vLLM, Ray Serve, uvicorn, two adapters."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve

from serving.app import HttpOptions, StudentRequest, Students, StudentSet, start_engine
from serving.bodies import Limits
from serving.gateway import DISCLOSURE
from serving.students import renderer
from tests.tiny import TEMPLATE, greedy_replies, tiny_set

KEY = token_hex(16)
TOKENS = 20
MESSAGES = [{"role": "user", "content": "I lost my job today."}]
LONG = 2000  # tokens of a reply that is still being written when something happens to it

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> StudentSet:
    return tiny_set(tmp_path_factory.mktemp("students"), max_model_len=2200, max_num_seqs=4)


@pytest.fixture(scope="module")
def endpoint(students: StudentSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Students]:
    key_file = tmp_path_factory.mktemp("secret") / "key"
    key_file.write_text(KEY + "\n")
    http = HttpOptions(port=0, key_file=str(key_file), max_queued=8, limits=Limits(max_new_tokens=LONG))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with start_engine(students, http=http) as running:
        yield running
    ray.shutdown()


@pytest.fixture
def client(endpoint: Students) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def raw(endpoint: Students) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=str(endpoint.url), headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def expected(students: StudentSet) -> dict[str, list[int]]:
    """transformers' greedy reply of every student to MESSAGES."""
    prompt = renderer(students.base, TEMPLATE)(MESSAGES)
    return {name: ids for name, (ids,) in greedy_replies(students, [prompt], TOKENS).items()}


def ask(client: openai.OpenAI, student: str, **options: Any) -> Any:
    options = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"return_token_ids": True}} | options
    return client.chat.completions.create(model=student, messages=MESSAGES, **options)  # type: ignore[arg-type]


def test_every_students_greedy_reply_is_transformers_and_is_the_one_that_bulk_generation_gives(
    endpoint: Students, students: StudentSet, client: openai.OpenAI, expected: dict[str, list[int]]
) -> None:
    prompt = renderer(students.base, TEMPLATE)(MESSAGES)
    bulk = {
        answer.id: answer
        for answer in endpoint.generate(StudentRequest(name, name, prompt, TOKENS) for name in students.names)
    }
    with ThreadPoolExecutor(6) as pool:  # all at once: batches mix base and adapters
        replies = list(pool.map(lambda name: (name, ask(client, name)), students.names * 2))
    for name, reply in replies:
        assert reply.prompt_token_ids == prompt
        assert reply.choices[0].token_ids == expected[name] == bulk[name].token_ids
        assert reply.choices[0].message.content == bulk[name].text
        assert (reply.model, reply.usage.prompt_tokens) == (name, len(prompt))
    assert len({tuple(ids) for ids in expected.values()}) == 3


def test_a_stream_says_what_the_whole_reply_says(client: openai.OpenAI) -> None:
    whole = ask(client, "kind").choices[0]
    chunks = list(ask(client, "kind", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_the_first_reply_of_a_conversation_discloses_the_ai_and_later_ones_do_not(client: openai.OpenAI) -> None:
    first = client.chat.completions.with_raw_response.create(model="base", messages=MESSAGES, max_tokens=2)  # type: ignore[arg-type]
    assert first.headers["x-ai-disclosure"] == DISCLOSURE
    assert first.parse().metadata == {"ai_disclosure": DISCLOSURE}
    opening = next(iter(ask(client, "base", stream=True)))
    assert opening.metadata == {"ai_disclosure": DISCLOSURE}
    turns = [*MESSAGES, {"role": "assistant", "content": "I am sorry."}, {"role": "user", "content": "Thanks."}]
    later = client.chat.completions.with_raw_response.create(model="base", messages=turns, max_tokens=2)  # type: ignore[arg-type]
    assert "x-ai-disclosure" not in later.headers
    assert getattr(later.parse(), "metadata", None) is None


def test_completions_and_models(client: openai.OpenAI, students: StudentSet) -> None:
    text = client.completions.create(model="wise", prompt="Once", max_tokens=5, temperature=0)
    assert text.usage is not None
    assert text.usage.completion_tokens == 5
    assert [model.id for model in client.models.list()] == ["base", "kind", "wise"]


@pytest.mark.parametrize("key", [None, "wrong"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/chat/completions", "/v1/completions", "/", "/-/routes"])
def test_every_path_asks_for_the_key(endpoint: Students, path: str, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{endpoint.url}{path}", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "path", ["/-/routes", "/-/healthz", "/docs", "/openapi.json", "/v1/load_lora_adapter", "/tokenize"]
)
def test_other_paths_are_not_there(raw: httpx.Client, path: str) -> None:
    assert raw.get(path).status_code == raw.post(path, json={}).status_code == 404


def test_it_stands_on_loopback(endpoint: Students) -> None:
    assert str(endpoint.url).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"n": 10_000}, 400),
        ({"max_tokens": 10**9}, 400),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400),  # more than the context holds
        ({"messages": [{"role": "user"}]}, 400),
        ({"temperature": -1}, 400),
        ({"model": "nobody"}, 404),
        ({"messages": [{"role": "user", "content": "x" * (1 << 20)}]}, 413),
    ],
)
def test_bad_requests_are_told_so(raw: httpx.Client, fields: dict[str, Any], status: int) -> None:
    answer = raw.post("/v1/chat/completions", json={"model": "base", "messages": MESSAGES} | fields)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)


def _stream(raw: httpx.Client, **fields: Any) -> Any:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": LONG, "temperature": 0, "stream": True}
    return raw.stream("POST", "/v1/chat/completions", json=body | fields)


def _wait_for(condition: Any, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _unfinished(endpoint: Students) -> int:
    return int(endpoint.handle.unfinished.remote().result())


def test_a_client_that_leaves_its_stream_ends_the_generation(endpoint: Students, raw: httpx.Client) -> None:
    with _stream(raw) as stream:
        began = time.monotonic()
        tokens = sum(1 for line in stream.iter_lines() if line.startswith("data: {"))
        whole_s = time.monotonic() - began
    assert tokens > 100
    with _stream(raw) as stream:
        lines = stream.iter_lines()  # held: a generator that nobody holds closes the connection
        next(lines)
        assert _unfinished(endpoint) == 1
    _wait_for(lambda: _unfinished(endpoint) == 0, whole_s / 2)


def test_a_full_queue_is_503_with_retry_after_and_health_still_answers(endpoint: Students, raw: httpx.Client) -> None:
    """4 are computed, 4 wait in the engine, 8 before it: of 40 at once, some are sent away."""

    def one(_: int) -> httpx.Response:
        body = {"model": "base", "messages": MESSAGES, "max_tokens": 300, "temperature": 0}
        return raw.post("/v1/chat/completions", json=body)

    with ThreadPoolExecutor(41) as pool:
        answers = [pool.submit(one, i) for i in range(40)]
        time.sleep(0.3)
        assert raw.get("/health").status_code == 200
        statuses = [answer.result().status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 8
    assert all(a.result().headers["retry-after"] == "1" for a in answers if a.result().status_code == 503)


def test_an_engine_killed_inside_a_stream_ends_it_with_an_error_and_the_endpoint_comes_back(
    endpoint: Students, raw: httpx.Client, client: openai.OpenAI, expected: dict[str, list[int]]
) -> None:
    pid = endpoint.handle.ready.remote().result()["pid"]
    with _stream(raw) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGKILL)
        events = [line for line in lines if line]
    assert "error" in json.loads(events[-1].removeprefix("data: "))
    assert "data: [DONE]" not in events
    reply = ask(client, "wise")  # waits for the replica that Serve starts
    assert reply.choices[0].token_ids == expected["wise"]
    assert raw.get("/health").status_code == 200


def test_the_key_is_in_no_log(endpoint: Students) -> None:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"  # type: ignore[attr-defined]
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert any(b"StudentEngine" in path.read_bytes() for path in files)  # we look in the right place
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_without_a_key_nothing_is_started(endpoint: Students, students: StudentSet, tmp_path: Path) -> None:
    before = set(serve.status().applications)
    with pytest.raises(ValueError, match="EMPATHY_NO_SUCH_KEY"):
        start_engine(students, http=HttpOptions(port=0, key_env="EMPATHY_NO_SUCH_KEY"))
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(ValueError, match="holds no API key"):
        start_engine(students, http=HttpOptions(port=0, key_file=str(tmp_path / "key")))
    assert set(serve.status().applications) == before
