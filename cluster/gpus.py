"""GPUs of this machine, and whether there are as many as a profile takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from cluster.profile import Profile

ANSWER_S = 20.0
"""A driver that hangs never answers."""


@dataclass(frozen=True)
class Found:
    """What nvidia-smi lists, such as "NVIDIA H100 80GB HBM3, 81559 MiB, driver 580.159.04"; `why` says why it lists
    nothing, where there is more to say than that it is not installed."""

    names: tuple[str, ...] = ()
    why: str = ""

    @property
    def memory_gib(self) -> tuple[float, ...]:
        """Memory of each GPU whose size nvidia-smi knows."""
        return tuple(int(size[1]) / 1024 for name in self.names if (size := re.search(r", (\d+) MiB, driver ", name)))


def found() -> Found:
    """The GPUs of this machine."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Found()
    asked = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return Found(why=f"nvidia-smi does not answer within {ANSWER_S:g} s: the driver hangs; restart the machine")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        return Found(why=f"nvidia-smi ends with {done.returncode}: {said or 'it says nothing'}")
    lines = [line.rpartition(", ") for line in done.stdout.splitlines() if line.strip()]
    return Found(tuple(f"{what}, driver {driver}" for what, _, driver in lines))


def is_local(profile: Profile) -> bool:
    """Whether the run is on this machine alone, and joins no cluster."""
    return (os.environ.get("RAY_ADDRESS") or profile.ray.address) == "local"


def wanted(profile: Profile, lanes: Collection[str] = ("training", "generating")) -> float:
    """GPUs of this machine that `lanes` take at once: training and the engine take turns. None of it where a cluster
    is joined."""
    if not is_local(profile):
        return 0
    training = profile.train.workers * profile.train.gpus_per_worker if "training" in lanes else 0
    return max(training, profile.engine.replicas * profile.engine.gpus if "generating" in lanes else 0)


def check(profile: Profile, lanes: Collection[str]) -> None:
    """Raises ValueError when this machine has fewer GPUs than `lanes` take: Ray would wait for them for ever."""
    want = wanted(profile, lanes)
    if not want or want <= len((there := found()).names):
        return
    train = profile.train
    raise ValueError(
        f"the profile's [train] gpus_per_worker = {train.gpus_per_worker:g} (workers = {train.workers}) "
        f"and [engine] gpus = {profile.engine.gpus:g} (replicas = {profile.engine.replicas}) take {want:g} GPUs of "
        f"this machine, which has {len(there.names)}{f' ({there.why})' if there.why else ''}: take another profile "
        'with --on, set them to 0 to use the CPU, or join a cluster with [ray] address = "auto"'
    )
