"""Bulk generation on a real engine with two adapters: equal to transformers, over killed processes."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from serving.app import Completion, Resources, StudentRequest, Students, StudentSet, Unanswered, start_engine
from serving.students import renderer, rendering_sha256
from tests.cluster import named
from tests.tiny import TEMPLATE, greedy_replies, tiny_adapter, tiny_set

TEXTS = [
    "I lost my job today.",
    "My sister had a baby!",
    "Nobody came to my party.",
    "The exam is tomorrow and I am afraid.",
]

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> StudentSet:
    return tiny_set(tmp_path_factory.mktemp("students"), max_model_len=128, max_num_seqs=8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: None, students: StudentSet) -> Iterator[Students]:
    with start_engine(students) as running:
        yield running


@pytest.fixture(scope="module")
def requests(students: StudentSet) -> list[StudentRequest]:
    """Every text for every student, neighbours from different students, so that they share batches."""
    render = renderer(students.base, students.chat_template)
    prompts = [render([{"role": "user", "content": text}]) for text in TEXTS]
    return [
        StudentRequest(f"{name}/{i}", name, prompt, max_tokens=24)
        for i, prompt in enumerate(prompts)
        for name in students.names
    ]


@pytest.fixture(scope="module")
def expected(students: StudentSet, requests: list[StudentRequest]) -> dict[str, list[int]]:
    """transformers' greedy reply to each request, by its id."""
    prompts = [request.prompt_ids for request in requests if request.student == "base"]
    return {
        f"{name}/{i}": ids
        for name, replies in greedy_replies(students, prompts, tokens=24).items()
        for i, ids in enumerate(replies)
    }


def test_a_batch_of_base_and_adapters_equals_transformers_token_for_token(
    engine: Students, requests: list[StudentRequest], expected: dict[str, list[int]]
) -> None:
    answers = {answer.id: answer for answer in engine.generate(requests, chunk=len(requests))}  # one chunk: one batch
    assert {key: answer.token_ids for key, answer in answers.items()} == expected
    for request in requests:
        answer = answers[request.id]
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(request.prompt_ids), len(expected[request.id]))
    assert len({tuple(expected[f"{name}/0"]) for name in ("base", "kind", "wise")}) == 3  # else this would prove little


def test_every_adapter_was_seen_to_change_the_replies(engine: Students) -> None:
    assert set(engine.ready["alive"]) == {"kind", "wise"}
    assert all(change > 1e-3 for change in engine.ready["alive"].values())


def test_ten_times_what_fits_comes_back_once_each_from_a_lazy_source(
    engine: Students, requests: list[StudentRequest], expected: dict[str, list[int]]
) -> None:
    read = 0

    def source() -> Iterator[StudentRequest]:
        nonlocal read
        for i in range(160):
            read += 1
            yield replace(requests[i % 12], id=f"{i}")

    answers = engine.generate(source(), chunk=4)
    first = next(answers)
    assert read < 160  # nothing is read far ahead of the engine
    everything = [first, *answers]
    assert sorted(int(answer.id) for answer in everything) == list(range(160))
    assert all(answer.token_ids == expected[requests[int(answer.id) % 12].id] for answer in everything)


def test_a_seed_repeats_a_sample_and_another_seed_does_not(engine: Students, requests: list[StudentRequest]) -> None:
    sampled = replace(requests[1], temperature=1.0)
    wanted = [replace(sampled, id="a", seed=7), replace(sampled, id="b", seed=7), replace(sampled, id="c", seed=8)]
    texts = {answer.id: answer.text for answer in engine.generate(wanted)}
    assert texts["a"] == texts["b"] != texts["c"]


def test_a_stop_string_ends_a_reply_before_it(engine: Students, requests: list[StudentRequest]) -> None:
    (whole,) = engine.generate([requests[0]])
    stop = whole.text[8:10]
    (stopped,) = engine.generate([replace(requests[0], stop=(stop,))])
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert whole.finish_reason == "length"


def test_a_request_that_cannot_be_answered_costs_only_itself(engine: Students, requests: list[StudentRequest]) -> None:
    bad = [
        replace(requests[0], id="long", prompt_ids=[7] * 120),
        replace(requests[0], id="nobody", student="nobody"),
        replace(requests[0], id="empty", prompt_ids=[]),
        replace(requests[0], id="vocabulary", prompt_ids=[10**6]),
    ]
    answers = {answer.id: answer for answer in engine.generate([*bad, requests[0]], chunk=5)}
    assert isinstance(answers.pop(requests[0].id), Completion)
    assert all(isinstance(answer, Unanswered) for answer in answers.values())
    assert "max_model_len = 128" in answers["long"].reason
    assert "base, kind, wise" in answers["nobody"].reason


def _engine_core(pid: int) -> int:
    """The process id of the replica's EngineCore (it names itself so)."""
    (core,) = named(pid, "EngineCore")
    return int(core.pid)


def _ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _wait_until_ended(pid: int, wait_s: float = 30) -> None:
    deadline = time.monotonic() + wait_s
    while not _ended(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.2)


@pytest.mark.parametrize("victim", ["replica", "engine core"])
def test_generation_goes_on_over_a_killed_engine_with_nothing_lost_or_doubled(
    engine: Students, requests: list[StudentRequest], expected: dict[str, list[int]], victim: str
) -> None:
    pid = engine.handle.ready.remote().result()["pid"]
    core = _engine_core(pid)
    wanted = [replace(requests[i % 12], id=f"{i}") for i in range(400)]
    answers = []
    for answer in engine.generate(wanted, chunk=4):
        answers.append(answer)
        if len(answers) == 40:
            os.kill(pid if victim == "replica" else core, signal.SIGKILL)
    assert sorted(int(answer.id) for answer in answers) == list(range(400))
    assert all(answer.token_ids == expected[requests[int(answer.id) % 12].id] for answer in answers)
    assert engine.handle.ready.remote().result()["pid"] != pid
    _wait_until_ended(pid)
    _wait_until_ended(core)  # a dead replica leaves no engine behind that holds the memory


def test_an_adapter_that_vllm_would_ignore_is_refused_by_name(
    cluster: None, students: StudentSet, tmp_path: Path
) -> None:
    """Only a running engine shows it: keys, shapes and B are right, but lora_alpha = 0 makes the change nothing."""
    dead = tiny_adapter(Path(students.base), tmp_path / "dead", seed=3)
    config = json.loads((dead / "adapter_config.json").read_text())
    (dead / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    with pytest.raises(ValueError, match="adapter 'dead' changes nothing"):
        start_engine(
            replace(students, adapters={"dead": str(dead)}, rendering_sha256=None), resources=Resources(num_cpus=0)
        )


def test_students_that_come_later_answer_as_those_of_the_start_and_outlive_its_process(
    cluster: None, students: StudentSet, requests: list[StudentRequest], expected: dict[str, list[int]], tmp_path: Path
) -> None:
    dead = tiny_adapter(Path(students.base), tmp_path / "dead", seed=3)
    config = json.loads((dead / "adapter_config.json").read_text())
    (dead / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    wide = tiny_adapter(Path(students.base), tmp_path / "wide", seed=4, rank=16)
    later = replace(students, adapters={}, later=4, later_rank=8)

    def said(engine: Students, asked: list[StudentRequest]) -> dict[str, list[int] | str]:
        answers = engine.generate(asked, chunk=len(asked), adapters=students.adapters)
        return {a.id: a.token_ids if isinstance(a, Completion) else a.reason for a in answers}

    with start_engine(later, resources=Resources(num_cpus=0)) as engine:
        of_base = [request for request in requests if request.student == "base"]
        assert said(engine, of_base) == {request.id: expected[request.id] for request in of_base}
        told = engine.load({"kind": students.adapters["kind"], "dead": str(dead), "wide": str(wide)})
        assert isinstance(told["kind"], float)
        assert "adapter 'dead' changes nothing" in str(told["dead"])
        assert "'wide'" in str(told["wide"])
        assert "rank" in str(told["wide"])
        assert isinstance(engine.load({"wise": students.adapters["wise"]})["wise"], float)
        assert said(engine, requests) == expected, "all of them in one batch"
        os.kill(engine.handle.ready.remote().result()["pid"], signal.SIGKILL)
        assert said(engine, requests) == expected, "by a process that was never told of them"
        more = {f"more {k}": students.adapters["wise"] for k in range(4)}
        refused = [why for why in engine.load(more).values() if isinstance(why, str)]
        assert len(refused) == 2
        assert "later = 4" in refused[0]


def test_a_student_whose_template_renders_otherwise_than_at_training_is_refused(
    cluster: None, students: StudentSet
) -> None:
    trained = rendering_sha256(renderer(students.base, TEMPLATE))
    served = replace(
        students, adapters={}, chat_template=TEMPLATE.replace("'|>' +", "'|> ' +"), rendering_sha256=trained
    )
    assert rendering_sha256(renderer(students.base, TEMPLATE)) == trained
    with pytest.raises(ValueError, match="rendering_sha256"):
        start_engine(served, resources=Resources(num_cpus=0))


def test_without_ray_it_says_so(students: StudentSet) -> None:
    if not ray.is_initialized():
        with pytest.raises(RuntimeError, match=r"ray\.init"):
            start_engine(students)
