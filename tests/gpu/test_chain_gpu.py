"""The chain on a GPU: NCCL or a single device for training, CUDA vLLM for generation, in both precisions."""

from __future__ import annotations

import math

import pytest

from empathy.records import Estimate, Reply
from tests.cluster import Work, empathy, profile_file
from tests.experiments import tiny_file

pytestmark = pytest.mark.timeout(1200)

PROFILE = """
[train]
workers = 1
gpus_per_worker = 1
[engine]
gpus = 1
kv_cache_gib = 1
"""


@pytest.fixture(scope="module", params=["bf16", "fp32"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """fp32: vLLM's own CUDA kernels take no adapters in it (see serving/float32_lora.py)."""
    folder = tmp_path_factory.mktemp("gpu")
    file = tiny_file(folder)
    file.write_text(file.read_text().replace('"fp32"', f'"{request.param}"'))
    work = Work(folder, file, profile_file(folder, PROFILE), str(folder / "store"))
    done = empathy("run", work.file, *work.where, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return work


def test_it_ends_with_estimates(finished: Work) -> None:
    measures = {e.measure for e in finished.store.get(finished.lowered.report).read(Estimate)}
    assert {"win_rate", "nll_per_token"} <= measures


def test_dpo_starts_at_ln_2(finished: Work) -> None:
    _, dpo = finished.lowered.cells
    first = finished.store.get(dpo.checkpoint).meta["proofs"]["dpo_start"]["loss"]
    assert first == pytest.approx(math.log(2), abs=1e-4 if '"fp32"' in finished.file.read_text() else 5e-3)


def test_every_student_answered_every_test_dialogue(finished: Work) -> None:
    for cell in finished.lowered.cells:
        replies = list(finished.store.get(cell.replies).read(Reply))
        assert replies
        assert not [r.dropped for r in replies if r.dropped]
