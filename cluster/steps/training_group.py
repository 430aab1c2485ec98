"""A group of Ray Train workers that works off a board."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.steps.board import BoardActor
from empathy.stages import Stage, from_json
from empathy.store import Store
from empathy.train.placement import Placement

ORDER_S = 5.0
GONE = "its process is gone: killed, crashed, or its machine was lost"
OUT_OF_MEMORY = "killed by Ray: its machine ran out of memory"


class TrainingGroup(threading.Thread):
    """Ray Train's `fit` in a thread; it returns when the board is closed. `error`: what it raised."""

    def __init__(self, board: BoardActor, store: Store, placement: Placement, max_failures: int):
        super().__init__(name="training group", daemon=True)
        self.error: BaseException | None = None
        self._store, self._name = store, f"train-{uuid.uuid4().hex[:16]}"
        self._trainer = self._made(board, placement, max_failures)
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001  judged by who feeds it
            self.error = error
        for path in self._store.files.list(f"ray-train/{self._name}", recursive=True):
            self._store.files.delete(path)

    def _made(self, board: BoardActor, placement: Placement, max_failures: int) -> Any:
        import ray.train as ray_train
        from ray.train.torch import TorchConfig, TorchTrainer

        v2: Any = ray_train  # its types are those of version 1
        files = self._store.files
        environment = {"OMP_WAIT_POLICY": "PASSIVE"}
        if placement.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        return TorchTrainer(
            train_loop,
            train_loop_config={
                "store": self._store.url if "://" in self._store.url else files.root,  # a worker is in another folder
                "options": self._store.options,
                "placement": placement.as_json(),
                "board": board.actor,
            },
            torch_config=TorchConfig(timeout_s=int(placement.timeout_s)),
            scaling_config=_scaling(placement),
            run_config=v2.RunConfig(
                name=self._name,
                storage_path=f"{files.root}/ray-train",  # a place that every machine reaches
                storage_filesystem=files.filesystem,
                failure_config=v2.FailureConfig(
                    max_failures=max_failures, max_preemption_failures=max(10, max_failures)
                ),
                worker_runtime_env={"env_vars": environment},
                callbacks=[_losses(board.actor)],
            ),
        )


def _losses(board: Any) -> Any:
    """What Ray Train's controller calls when ranks have ended: it puts on the board why. Ray then starts the group
    again, and the driver would not hear of it."""
    from ray.train import UserCallback

    class Losses(UserCallback):  # type: ignore[misc]  # Ray is imported only now: its version of Train has been chosen
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            board.lose.remote({rank: ended_by(error) for rank, error in worker_exceptions.items()})

    return Losses()


def ended_by(error: Exception) -> str:
    """Why a rank ended, in a line: its process is gone, or what its code raised."""
    gone = getattr(error, "health_check_failure", None)
    if gone is not None:
        return OUT_OF_MEMORY if type(gone).__name__ == "OutOfMemoryError" else GONE
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[-1] if said else type(error).__name__


def lost(reasons: Mapping[int, str], world: int) -> str:
    """ "rank 1 of 2 ended (its process was killed)": those first that took the others with them."""
    gone = {rank: why for rank, why in reasons.items() if why in (GONE, OUT_OF_MEMORY)} or reasons
    ranks, why = sorted(gone), gone[min(gone)]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} of {world} ended ({why})"


def _scaling(placement: Placement) -> Any:
    from ray.train import ScalingConfig

    gpu = placement.device == "cuda"
    resources = {"CPU": 1.0} | ({"GPU": placement.gpu_share} if gpu else {})
    return ScalingConfig(num_workers=placement.workers, use_gpu=gpu, resources_per_worker=resources)


def train_loop(settings: dict[str, Any]) -> None:
    """What each worker does until the board is closed. An error of a stage's own is told to the board, and the next
    order is taken; one that no group of this placement would be spared is told too, and all end.
    """
    import ray

    from empathy.train import session

    board = settings["board"]

    def progress(stage: Stage, done: int, total: int) -> None:
        board.tell.remote(stage.key, done, total)

    store = Store.open(settings["store"], **settings["options"])
    try:
        with session.opened(store, Placement(**settings["placement"]), progress) as making:
            first = making.group.first
            number = making.group.from_first(ray.get(board.first_open.remote()) if first else 0)
            for k, order in _orders(board, number):
                (stage,) = from_json(order["stage"])
                error = None
                try:
                    making.make(stage, order["epoch"])
                except session.STAGES_OWN as raised:
                    error = (type(raised).__name__, str(raised))
                if first:
                    ray.get(board.end.remote(k, error))
    except ValueError as error:
        ray.get(board.refuse.remote(str(error)))
    except ray.exceptions.RayActorError:  # the board is gone: no restart would find it
        return


def _orders(board: Any, number: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Orders from `number` on, each as it comes, until the board is closed."""
    import ray

    while True:
        order, closed = ray.get(board.order.remote(number, ORDER_S))
        if order is not None:
            yield number, order
            number += 1
        elif closed:
            return
