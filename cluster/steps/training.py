"""Checkpoints and log-probabilities on a group of Ray Train workers that stays up and is fed stage by stage.

The workers read from the store and write to it. The driver puts orders on a board (an actor) as stages become ready;
every worker takes order 0, 1, 2, ... from it and waits there, in no collective, while the next one has not come. A
group that is started again after a loss begins at the first order that has not ended. What resumes within a stage is
what the store holds (`empathy.train.progress`), not what Ray Train keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Place, Schedule
from cluster.work import Needs, Work
from empathy.stages import Stage, from_json, to_json
from empathy.store import FencedError, Store
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
AHEAD = 2
"""Orders on the board that have not ended: the next stage is there before this one is finished."""
NEWS_S = 0.5
ORDER_S = 5.0
STOPPING_S = 5.0


# ---------------------------------------------------------------- the lane


def placement_of(profile: Profile) -> Placement:
    """How the profile says that stages are trained."""
    place = profile.train
    return Placement(
        workers=place.workers,
        micro_batch=place.micro_batch,
        zero_stage=place.zero_stage,
        device="cuda" if place.gpus_per_worker else "cpu",
        gradient_checkpointing=place.gradient_checkpointing,
        save_every_s=place.save_every_s,
    )


def loop(places: Sequence[Place], work: Work, context: Context) -> None:
    """Make the stages of all bases until none can come any more."""
    train_on(places, work, placement_of(context.profile), context.profile.train.max_failures)


def train(
    stages: Sequence[Stage],
    store_url: str,
    store_options: Mapping[str, Any],
    placement: Placement,
    progress: Report | None = None,
    max_failures: int = 3,
) -> None:
    """Make `stages`, and nothing they stand on, with Ray Train; Ray is up. Raises ValueError with what failed."""
    store, place = Store.open(store_url, **store_options), Place("training")
    check.stages(stages, store, placement)
    schedule = Schedule([s for s in stages if not store.done(s)], lambda stage: place)
    work = Work(schedule, store, Progress(out=lambda line: None, on_units=progress), lambda: Needs(math.inf, math.inf))
    try:
        train_on([place], work, placement, max_failures)
    finally:
        work.release_all()
    if failures := schedule.failures():
        raise ValueError("; ".join(f"{failure.stage!r}: {failure.why}" for failure in failures))


def train_on(places: Sequence[Place], work: Work, placement: Placement, max_failures: int) -> None:
    """Feed one group, and another one after it when it had to go, as long as stages of `places` may come.

    The group stays up while more may become ready, and goes when another lane waits for its room and nothing is ready.
    Raises StoppedError when the run stops.
    """
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    gpus = placement.workers if placement.device == "cuda" else 0
    feed = _Feed(places, work, placement)
    while feed.wait():
        with work.room("training", Needs(placement.workers, gpus)):
            if first := feed.next():
                _serve(feed, first, work, placement, max_failures)


class _Feed:
    """Ready stages, those of the resident base first."""

    def __init__(self, places: Sequence[Place], work: Work, placement: Placement):
        self._places, self._work, self._placement = places, work, placement
        self._base: Place | None = None

    def wait(self) -> bool:
        """Until something is ready; False when nothing will be."""
        work = self._work
        work.wait(lambda: work.schedule.best(self._places) is not None or not work.may_come(self._places))
        return not work.stopping and work.may_come(self._places)

    def next(self) -> Stage | None:
        """A stage that is ready now, leased."""
        while not self._work.stopping:
            same = [self._base] if self._base else []
            place = self._work.schedule.best(same) or self._work.schedule.best(self._places)
            if place is None:
                return None
            for stage in self._work.take(place, 1):
                if self._is_sound(stage):
                    self._base = place
                    return stage
        return None

    def _is_sound(self, stage: Stage) -> bool:
        """Whether it can be trained at all: what cannot is told here, and no group is started for it."""
        try:
            check.stages([stage], self._work.store, self._placement)
        except ValueError as error:
            self._work.failed(stage, error)
            return False
        return True

    def is_over(self) -> bool:
        """Whether a group that has nothing to do should go."""
        return self._work.stopping or self._work.crowded or not self._work.may_come(self._places)

    def refuse(self, why: str) -> None:
        """No group can be had: all that is ready, or will be, fails."""
        self._work.refuse(self._places, why)


# ---------------------------------------------------------------- one group


def _serve(feed: _Feed, first: Stage, work: Work, placement: Placement, max_failures: int) -> None:
    """Start a group and feed it, beginning with `first`, until it is over or ends for good.

    A group that Ray could not keep alive fails the stage it had in hand, unless it finished others before: then a new
    group goes on.
    """
    work.progress.working([first], "training")
    with _Board() as board:
        orders = [first]
        board.call("put", _order(first, work))
        group = _Group(board, work.store, placement, max_failures)
        ended, refused = _feed(feed, orders, work, board, group)
        group.join(STOPPING_S if work.stopping else None)
    left = orders[ended:]
    if left and not ended and refused is None and group.error is not None and not work.stopping:
        work.failed(left.pop(0), _reason(group.error))
    for stage in left:
        work.back(stage)
    if refused is not None:
        feed.refuse(refused)


def _feed(feed: _Feed, orders: list[Stage], work: Work, board: _Board, group: _Group) -> tuple[int, str | None]:
    """Put orders on the board and tell what became of them, until the group ends. How many have ended, and why the
    group gave up, if it did."""
    from ray.exceptions import RayActorError

    ended, closed, by_key = 0, False, {stage.key: stage for stage in orders}
    while not work.stopping:
        up = group.is_alive()  # asked before the news: what comes after the end is read
        try:
            news = board.call("news", ended, NEWS_S)
        except RayActorError:  # the board is lost, and so its workers will end
            break
        for key, (done, total) in news.latest.items():
            work.progress.units(by_key[key], done, total)
        for error in news.ends:
            _tell(work, orders[ended], error)
            ended += 1
        if not up:
            return ended, news.refused
        while not closed and len(orders) - ended < AHEAD and (stage := feed.next()):
            by_key[stage.key] = stage
            orders.append(stage)
            board.call("put", _order(stage, work))
        if not closed and ended == len(orders) and feed.is_over():
            closed = True
            board.call("close")
    return ended, None


def _order(stage: Stage, work: Work) -> dict[str, Any]:
    return {"stage": to_json([stage]), "epoch": work.epoch(stage)}


def _tell(work: Work, stage: Stage, error: tuple[str, str] | None) -> None:
    if error is None or work.store.done(stage):
        work.done(stage)
    elif error[0] == FencedError.__name__:
        work.back(stage)
    else:
        work.failed(stage, error[1])


def _reason(error: BaseException) -> str:
    """Ray's errors carry whole logs; what went wrong stands at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its training group kept ending: {lines[-1] if lines else type(error).__name__}"


class _Group(threading.Thread):
    """Ray Train's `fit` in a thread; it returns when the board is closed. `error`: what it raised."""

    def __init__(self, board: _Board, store: Store, placement: Placement, max_failures: int):
        super().__init__(name="training group", daemon=True)
        self.error: BaseException | None = None
        self._store, self._name = store, f"train-{uuid.uuid4().hex[:16]}"
        self._trainer = self._made(board, placement, max_failures)
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001  judged by `_serve`
            self.error = error
        for path in self._store.files.list(f"ray-train/{self._name}", recursive=True):
            self._store.files.delete(path)

    def _made(self, board: _Board, placement: Placement, max_failures: int) -> Any:
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
            ),
        )


def _scaling(placement: Placement) -> Any:
    from ray.train import ScalingConfig

    gpu = placement.device == "cuda"
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {})
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


# ---------------------------------------------------------------- the board


@dataclass
class News:
    """`latest`: progress by key since the last news. `ends`: what became of the orders that ended: None, or the error's
    type and text. `refused`: why workers gave up."""

    latest: dict[str, tuple[int, int]] = field(default_factory=dict)
    ends: list[tuple[str, str] | None] = field(default_factory=list)
    refused: str | None = None


class Board:
    """Orders out, news back; an actor. Who asks for what is not there yet waits a little: nobody asks in a hurry."""

    def __init__(self) -> None:
        self._orders: list[dict[str, Any]] = []
        self._closed = False
        self._news = News()
        self._changed = asyncio.Condition()

    async def put(self, order: dict[str, Any]) -> None:
        self._orders.append(order)
        await self._wake()

    async def close(self) -> None:
        self._closed = True
        await self._wake()

    async def order(self, number: int, patience_s: float) -> tuple[dict[str, Any] | None, bool]:
        """Order `number` (None when it has not come in time), and whether none will come."""
        await self._wait(lambda: number < len(self._orders) or self._closed, patience_s)
        return (self._orders[number] if number < len(self._orders) else None), self._closed

    async def first_open(self) -> int:
        """The first order that has not ended: where a group begins."""
        return len(self._news.ends)

    async def tell(self, key: str, done: int, total: int) -> None:
        self._news.latest[key] = (done, total)

    async def end(self, number: int, error: tuple[str, str] | None) -> None:
        """Order `number` has ended."""
        assert number == len(self._news.ends), "orders are worked off one after another"
        self._news.ends.append(error)
        await self._wake()

    async def refuse(self, reason: str) -> None:
        self._news.refused = self._news.refused or reason
        await self._wake()

    async def news(self, known: int, patience_s: float) -> News:
        """What there is once more than `known` orders have ended, or after `patience_s`; ends from `known` on."""
        await self._wait(lambda: len(self._news.ends) > known or self._news.refused is not None, patience_s)
        latest, self._news.latest = self._news.latest, {}
        return News(latest, self._news.ends[known:], self._news.refused)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, true: Callable[[], bool], patience_s: float) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(true), patience_s)


class _Board:
    """A board as the driver has it; gone after the block."""

    def __init__(self) -> None:
        import ray

        self.actor: Any = ray.remote(num_cpus=0)(Board).options(max_concurrency=1000).remote()

    def call(self, name: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, name).remote(*arguments))

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        ray.kill(self.actor)
