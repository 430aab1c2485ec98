"""Engines on a GPU: two of them share one, and adapters are alive in both precisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from serving.app import Completion, Resources, StudentRequest, StudentSet, start_engine
from serving.students import renderer
from tests.tiny import tiny_set

pytestmark = pytest.mark.timeout(900)
HALF = Resources(num_gpus=0.5)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> StudentSet:
    return tiny_set(tmp_path_factory.mktemp("students"), max_model_len=128, max_num_seqs=8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def requests_to(students: StudentSet) -> list[StudentRequest]:
    prompt = renderer(Path(students.base), students.chat_template)([{"role": "user", "content": "I lost my job."}])
    return [StudentRequest(name, name, prompt, max_tokens=24) for name in students.names]


def test_two_engines_share_a_gpu_and_their_adapters_are_alive(cluster: None, students: StudentSet) -> None:
    half = replace(students, dtype="bfloat16")
    with start_engine(students, resources=HALF) as exact, start_engine(half, resources=HALF) as rounded:
        for engine, served in ((exact, students), (rounded, half)):
            assert set(engine.ready["alive"]) == {"kind", "wise"}
            answers = list(engine.generate(requests_to(served)))
            assert all(isinstance(answer, Completion) and answer.token_ids for answer in answers)
            assert (
                len({tuple(answer.token_ids) for answer in answers}) == 3
            )  # the base and each adapter answer otherwise
