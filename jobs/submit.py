"""Run an experiment on a Ray cluster: `ray job submit -- python -m jobs.run FILE`, with the code shipped small, and
with it what the experiment names of this machine (`jobs.shipping`).

Keys are never shipped: teachers' and buckets' credentials must be in the environment of the cluster's machines.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import profile as profiles
from empathy import experiment
from empathy.stages import missing
from empathy.version import RECORD, commit
from empathy.words import counted
from jobs import choose, shipping

if TYPE_CHECKING:  # Ray is slow to load
    from ray.job_submission import JobSubmissionClient

CODE = ("empathy", "serving", "cluster", "jobs", "infra")
SHIPPED_PLACES = ("EMPATHY_DATA", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where things are; none of them is a secret."""
MAX_SHIPPED_MIB = 50
FOLLOW_S = 2.0
NAME_IT = "name the cluster's job server (its dashboard) with --address, e.g. http://HEAD:8265, and see that it is up"


def _pack(target: Path, files: list[Path]) -> None:
    """The code and `files` as a working directory. Raises ValueError, naming the largest, when it is too large."""
    root = Path(__file__).parent.parent
    for name in CODE:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "node_modules")
            )
    (target / "empathy" / RECORD).write_text(commit(), encoding="utf-8")  # the copy has no repository to ask
    for file in files:
        shutil.copy(file, target / file.name)
    sizes = sorted(((p.stat().st_size, p) for p in target.rglob("*") if p.is_file()), reverse=True)
    total = sum(size for size, _ in sizes) / 2**20
    if total > MAX_SHIPPED_MIB:
        largest = ", ".join(f"{p.relative_to(target)} {size / 2**20:.1f} MiB" for size, p in sizes[:5])
        raise ValueError(
            f"the code to ship is {total:.0f} MiB, over {MAX_SHIPPED_MIB}: take out what does not belong ({largest})"
        )


def entrypoint(
    file: str,
    on: str | None,
    profile: profiles.Profile,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
) -> str:
    """The command that the cluster runs in the shipped folder."""
    words = [profile.ray.python, "-m", "jobs.run", Path(file).name, "--store", profile.store]
    if on is not None:
        words += ["--on", Path(on).name]
    words += [f"--only={pattern}" for pattern in only]
    words += [f"--until={until}"] if until is not None else []
    words += [f"--max-usd={max_usd:g}"] if max_usd is not None else []
    return shlex.join(words)


def _client(address: str | None) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError, RpcError
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ValueError(f"address: not given and RAY_ADDRESS is not set; {NAME_IT}")
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ValueError(
            f"address = {address!r}: {_first_line(error)}; put the cluster's token into RAY_AUTH_TOKEN, or the path of "
            "its file into RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, RpcError) as error:
        raise ValueError(f"address = {address!r}: no Ray answers there; {NAME_IT}") from error
    except (ValueError, RuntimeError) as error:  # no address, or another server's
        raise ValueError(f"address = {address!r}: {_first_line(error).rstrip('.')}; {NAME_IT}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def submit(
    file: str,
    on: str | None,
    store_url: str | None,
    address: str | None,
    wait: bool,
    only: Sequence[str] = (),
    until: str | None = None,
    max_usd: float | None = None,
) -> int:
    """Ship, start, follow the log, draw the report. The exit code is the job's.

    Raises ValueError, before anything is sent, for a wrong file or choice and for a cluster that does not let us in.
    """
    from jobs import run

    choose.check_max_usd(max_usd)
    profile = profiles.load(on, store_url)
    targets = choose.targets(choose.lowered(experiment.load(file), only), until, file)
    store = profile.open_store()
    store.files.probe()
    print(f"{counted(len(missing(targets, store.done)), 'stage')} to make in {store.url}", file=sys.stderr)
    client = _client(address)
    with tempfile.TemporaryDirectory() as folder:
        _pack(Path(folder), [Path(file)] + ([Path(on)] if on and Path(on).is_file() else []))
        for line in shipping.ship(Path(file), Path(folder), SHIPPED_PLACES):
            print(f"note: {line}", file=sys.stderr)
        places = {name: os.environ[name] for name in SHIPPED_PLACES if name in os.environ}
        job = client.submit_job(
            entrypoint=entrypoint(file, on, profile, only, until, max_usd),
            runtime_env={"working_dir": folder, "env_vars": places},
            metadata={"experiment": Path(file).stem},
        )
    print(job)
    if not wait:
        return 0
    if not _follow(client, job):
        return 1
    return run.show(file, on, store_url, only) if until is None else 0  # the job drew it on the cluster


def _follow(client: JobSubmissionClient, job: str) -> bool:
    """Copy the job's log to standard error until it ends. Whether it succeeded."""
    shown = 0
    while True:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        print(log[shown:], end="", file=sys.stderr, flush=True)
        shown = len(log)
        if status.is_terminal():
            succeeded = bool(status == "SUCCEEDED")
            print(f"{job}: {status.value}" + ("" if succeeded else f" ({client.get_job_info(job).message})"))
            return succeeded
        time.sleep(FOLLOW_S)
