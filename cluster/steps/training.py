"""Checkpoints and log-probabilities on a group of Ray Train workers, which train all arms of an experiment one after
another.

The workers read from the store and write to it; the driver sees progress alone. What resumes is what the store holds
(`empathy.train.progress`), not what Ray Train keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from empathy.stages import Stage, from_json, to_json
from empathy.store import Store
from empathy.train import check
from empathy.train.placement import Placement

if TYPE_CHECKING:
    from cluster.executors import Context

Report = Callable[[Stage, int, int], None]
RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # 60 by default: importing torch on a busy machine can take longer
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more; what it saves is saved by `empathy.train.progress`
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
POLL_S = 1.0


def takes(stage: Stage) -> bool:
    return stage.kind in ("checkpoint", "logprobs")


def run(stages: Sequence[Stage], context: Context) -> None:
    """Make a batch of stages as the profile says."""
    from cluster.session import ray_session

    profile = context.profile
    place = profile.train
    placement = Placement(
        workers=place.workers,
        micro_batch=place.micro_batch,
        zero_stage=place.zero_stage,
        device="cuda" if place.gpus_per_worker else "cpu",
        gradient_checkpointing=place.gradient_checkpointing,
        save_every_s=place.save_every_s,
    )
    check.stages(stages, context.store, placement)  # before a cluster is started for it
    with ray_session(profile):
        train(stages, context.store.url, context.store.options, placement, context.progress.units, place.max_failures)


def train(
    stages: Sequence[Stage],
    store_url: str,
    store_options: Mapping[str, Any],
    placement: Placement,
    progress: Report | None = None,
    max_failures: int = 3,
) -> None:
    """Make `stages` with Ray Train; Ray is up. A group that loses a worker is started again, at most `max_failures`
    times.

    Raises ValueError for what a user can mend (tried once), ray.train.TrainingFailedError for what kept failing.
    """
    store = Store.open(store_url, **store_options)
    check.stages(stages, store, placement)
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    from ray.train.torch import TorchConfig, TorchTrainer

    with _board({s.key: s for s in stages}, progress) as board:
        settings = {
            "stages": to_json(stages),
            "store": store_url if "://" in store_url else store.files.root,  # a worker has another working folder
            "options": dict(store_options),
            "placement": placement.as_json(),
            "board": board,
        }
        TorchTrainer(
            train_loop,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=int(placement.timeout_s)),
            scaling_config=_scaling(placement),
            run_config=_run_config(stages, store, placement, max_failures),
        ).fit()


def train_loop(settings: dict[str, Any]) -> None:
    """What each worker does. An error that a second try cannot heal goes to the board, so that Ray does not try
    again.
    """
    from empathy.train import session

    board = settings["board"]

    def progress(stage: Stage, done: int, total: int) -> None:
        board.tell.remote(stage.key, done, total)

    try:
        store = Store.open(settings["store"], **settings["options"])
        session.run(from_json(settings["stages"]), store, Placement(**settings["placement"]), progress)
    except (ValueError, ArithmeticError) as error:
        import ray

        ray.get(board.refuse.remote(f"{type(error).__name__}: {error}"))


def _scaling(placement: Placement) -> Any:
    from ray.train import ScalingConfig

    gpu = placement.device == "cuda"
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {})
    return ScalingConfig(num_workers=placement.workers, use_gpu=gpu, resources_per_worker=resources)


def _run_config(stages: Sequence[Stage], store: Store, placement: Placement, max_failures: int) -> Any:
    from ray.train import FailureConfig, RunConfig

    name = hashlib.sha256(" ".join(s.key for s in stages).encode()).hexdigest()[:16]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    if placement.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return RunConfig(
        name=f"train-{name}",
        storage_path=f"{store.files.root}/ray-train",  # a place that every machine reaches
        storage_filesystem=store.files.filesystem,
        failure_config=FailureConfig(max_failures=max_failures, max_preemption_failures=max(10, max_failures)),
        worker_runtime_env={"env_vars": environment},
    )


class Board:
    """Where workers write how far they are; an actor."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, int]] = {}
        self._refused: list[str] = []

    def tell(self, key: str, done: int, total: int) -> None:
        self._latest[key] = (done, total)

    def refuse(self, reason: str) -> None:
        self._refused.append(reason)

    def read(self) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """What is new since the last reading, and why workers gave up."""
        latest, self._latest = self._latest, {}
        return latest, list(self._refused)


@contextlib.contextmanager
def _board(stages: Mapping[str, Stage], progress: Report | None) -> Iterator[Any]:
    """A board, read while the block runs. Raises ValueError at its end when workers gave up."""
    import ray

    board = ray.remote(num_cpus=0)(Board).remote()
    ended = threading.Event()

    def read() -> list[str]:
        latest, refused = ray.get(board.read.remote())
        for key, (done, total) in latest.items():
            if progress:
                progress(stages[key], done, total)
        return refused

    def follow() -> None:
        while not ended.wait(POLL_S):
            read()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join()
        refused = read()
        ray.kill(board)
    if refused:
        raise ValueError(refused[0])
