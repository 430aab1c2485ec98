"""Ray jobs on a cluster with token authentication: `empathy submit`, and `ray job submit` by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from empathy.stages import walk
from tests.cluster import (
    LIMIT_S,
    ROOT,
    Work,
    assert_same,
    empathy,
    environment,
    outcome,
    profile_file,
    started,
    wait_until,
)
from tests.experiments import tiny_file
from tests.s3 import free_port
from tests.whole.conftest import Finished

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(5400)]

SECRET = "planted-9f3b2c"
"""In the submitter's environment; nowhere else afterwards."""
TOKEN = "5e1d" * 8
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head node. `variables` let a process in."""

    address: str
    logs: Path
    variables: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head --block` with a token, on ports of its own; ended by process id."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "private" / "token"
    token.parent.mkdir(mode=0o700)
    token.write_text(TOKEN)
    token.chmod(0o600)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ports = {name: free_port() for name in PORTS}
    with ExitStack() as ends:
        place = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # sockets want short names
        ends.callback(shutil.rmtree, place, ignore_errors=True)
        words = ["start", "--head", "--block", "--num-cpus=8", f"--temp-dir={place}", "--disable-usage-stats"]
        words += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=500000000"]
        words += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{name}={port}" for name, port in ports.items())]
        path = f"{BIN}:{environment()['PATH']}"  # `python` of a job's entrypoint is this one
        log = folder / "head.log"
        process = ends.enter_context(started(BIN / "ray", *words, cwd=folder, log=log, **variables, PATH=path))
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_until(lambda: answers(f"{address}/api/version"), process, log, "the job server")
        yield Head(address, place, variables)


PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


def answers(url: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        return bool(urllib.request.urlopen(request, timeout=5).status == 200)
    except OSError:  # not up yet
        return False


def work(folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder, tiny_file(folder), profile_file(folder), str(folder / "store"))


def test_without_the_token_it_is_refused_in_one_message(head: Head, tmp_path: Path) -> None:
    mine = work(tmp_path / "w")
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    refused = empathy("submit", mine.file, *mine.where, "--address", head.address, cwd=tmp_path, **wrong)
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    message = refused.stderr.splitlines()[-1]
    assert message.startswith(f"empathy submit: address = '{head.address}'")
    assert "token" in message.lower()


def test_an_address_where_nothing_listens_is_refused_in_one_message(tmp_path: Path) -> None:
    mine = work(tmp_path / "w")
    address = f"http://127.0.0.1:{free_port()}"
    refused = empathy("submit", mine.file, *mine.where, "--address", address, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert address in refused.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, subprocess.CompletedProcess[str]]:
    """`empathy submit` on an empty store, from an environment that holds a secret."""
    mine = work(tmp_path_factory.mktemp("submitted"))
    secrets = {"OPENAI_API_KEY": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    options = (*mine.where, "--address", head.address)
    done = empathy("submit", mine.file, *options, cwd=mine.folder, **head.variables, **secrets)
    return mine, done


def test_a_submitted_job_makes_the_artifacts_of_a_run(
    submitted: tuple[Work, subprocess.CompletedProcess[str]], finished: Finished
) -> None:
    mine, done = submitted
    assert done.returncode == 0, done.stderr[-6000:]
    all_of_them = len(list(walk([mine.lowered.report])))
    assert f"{all_of_them} stages to make" in done.stderr
    assert f"made {all_of_them} stages" in done.stderr
    assert_same(outcome(mine), outcome(finished.work))


def test_no_secret_is_in_the_job_its_logs_or_the_store(
    head: Head, submitted: tuple[Work, subprocess.CompletedProcess[str]]
) -> None:
    mine, done = submitted
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    jobs = json.loads(urllib.request.urlopen(request, timeout=30).read())
    assert jobs
    said = [json.dumps(jobs), done.stdout, done.stderr]
    for folder in (head.logs, mine.folder):
        said += [p.read_bytes().decode(errors="replace") for p in folder.rglob("*") if p.is_file()]
    assert len(said) > 50
    for text in said:
        assert SECRET not in text
    assert TOKEN not in "".join(said)


def test_ray_job_submit_by_hand_does_the_same(head: Head, finished: Finished, tmp_path: Path) -> None:
    """From a store that lacks verdicts and report: the literal command asks on the cluster and makes them."""
    mine = work(tmp_path / "w")
    shutil.copytree(finished.work.url, mine.url, ignore=shutil.ignore_patterns("verdicts", "report", "ledger"))
    command = ["job", "submit", "--address", head.address, "--working-dir", str(ROOT), "--"]
    command += ["python", "-m", "jobs.run", str(mine.file), *mine.where]
    done = subprocess.run(
        [str(BIN / "ray"), *command],
        cwd=tmp_path,
        env=environment(**head.variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    missing = sum(stage.kind in ("verdicts", "report") for stage in walk([mine.lowered.report]))
    assert f"made {missing} stages" in done.stdout + done.stderr
    assert_same(outcome(mine), outcome(finished.work))
