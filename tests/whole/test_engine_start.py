"""An engine that cannot start says why; one whose driver is gone goes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import ray
from ray import serve

from serving.app import StudentSet, start_engine
from tests.cluster import ROOT, environment
from tests.tiny import TEMPLATE, tiny_student

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

DRIVER = """
import sys, ray
from serving.app import StudentSet, start_engine
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
running = start_engine(StudentSet(sys.argv[2], sys.argv[3], max_model_len=128, max_num_seqs=8, kv_cache_gib=0.25))
print("started", running.app_name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_student(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_a_kv_cache_that_holds_no_reply_is_refused_with_the_numbers(address: str, base: str) -> None:
    """4,096 positions x 4 layers x 2 x 2 heads x 32 numbers x 4 bytes = 8 MiB; given are 2."""
    students = StudentSet(base, TEMPLATE, dtype="float32", max_model_len=4096, max_num_seqs=8, kv_cache_gib=0.002)
    with pytest.raises(
        ValueError, match=r"kv_cache_gib is too small.*4096 tokens needs 0\.01 GiB.*raise it"
    ) as refused:
        start_engine(students)
    assert "Traceback" not in str(refused.value)
    assert serve.status().applications == {}


def test_an_application_goes_with_its_driver_and_no_other_does(address: str, base: str) -> None:
    words = [sys.executable, "-c", DRIVER, address, base, TEMPLATE]
    driver = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout is not None
        theirs = driver.stdout.readline().split()[1]
        students = StudentSet(base, TEMPLATE, max_model_len=128, max_num_seqs=8, kv_cache_gib=0.25)
        with start_engine(students) as ours:  # the same students: still another application
            assert set(serve.status().applications) == {theirs, ours.app_name}
            driver.kill()
            deadline = time.monotonic() + 120
            while theirs in serve.status().applications:
                assert time.monotonic() < deadline, "the dead driver's application is still there"
                time.sleep(1)
            time.sleep(15)  # longer than replicas take to look for their driver
            assert ours.handle.ready.remote().result()["names"] == ("base",)
    finally:
        driver.kill()
        driver.wait()
    assert serve.status().applications == {}
