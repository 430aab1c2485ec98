"""Teacher replies and verdicts: parts are shared out to processes, each keeps many calls in flight, every reply in the
ledger.

The unit is a part of a stage. Finished parts are skipped; a broken run pays for nothing twice, because the ledger
knows what was answered. Several stages go through one set of workers, so starting those is paid once for a grid.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from cluster.providers import models
from cluster.quota import Part, WorkersEnd
from cluster.steps import batched
from cluster.steps.parts import Builder, Done, Job, Report, drops
from empathy.stages import Stage
from empathy.store import Store, Writer
from serving.batch_keeper import check_places
from serving.client import Client, Counts
from serving.ledger import Ledger
from serving.providers import Provider

__all__ = ["Asker", "Builder", "Done", "Job", "Report", "ask", "ask_all"]

PARTS_AT_ONCE = 3
"""While the last calls of a part are awaited, the next one is already being asked."""
PARTS_A_BATCH = 16
TELL_S = 1.0
"""How often a worker tells how many rows of its parts it has."""


# ---------------------------------------------------------------- one process


async def _answer_part(client: Client, store: Store, job: Job, part: int, rows: dict[Part, int]) -> None:
    """Ask for every row of one part and write it, in the builder's order. `rows` counts them as they come."""
    counts, records = Counts(), dict[str, Any]()
    askings = await asyncio.to_thread(lambda: list(job.builder(job.stage, store, part)))
    async with aclosing(client.drive(askings, counts)) as answered:
        async for name, record in answered:
            records[name] = record
            rows[job.stage.key, part] = len(records)
    ordered = [records[name] for name, _ in askings]
    assert len(records) == len(askings), f"{job.stage!r}: two askings of part {part} have one name"
    said = {**drops(ordered), **{name: n for name, n in counts.as_dict().items() if n}}
    await asyncio.to_thread(store.writer(job.stage).write_records, part, ordered, job.record_cls, said)


async def _answer_parts(
    store: Store,
    ledger: Ledger,
    providers: Sequence[Provider],
    in_flight: int,
    jobs: Sequence[Job],
    parts: Sequence[Done],
    quota: WorkersEnd | None,
) -> AsyncGenerator[Done, None]:
    """Make `parts`, a few at a time; yields each when it is written. Raises what the first failing part raised."""
    waiting, running, rows = list(reversed(parts)), dict[asyncio.Task[None], Done](), dict[Part, int]()
    async with Client(providers, ledger, in_flight, quota) as client, _told(client, rows, quota):
        try:
            while waiting or running:
                while waiting and len(running) < PARTS_AT_ONCE:
                    item = waiting.pop()
                    answering = _answer_part(client, store, jobs[item.job], item.part, rows)
                    running[asyncio.create_task(answering)] = item
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
                    yield running.pop(task)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def _told(client: Client, rows: dict[Part, int], quota: WorkersEnd | None) -> AsyncIterator[None]:
    """Inside, the run hears every second, and once more at the end, of `rows` and of providers that are away."""
    worker, said = uuid.uuid4().hex, dict[str, str]()

    def tell() -> None:
        nonlocal said
        away = client.away
        if quota is not None and (rows or away != said):
            quota.tell(rows, away, worker)
            rows.clear()
            said = away

    async def telling() -> None:
        while True:
            await asyncio.sleep(TELL_S)
            tell()

    task = asyncio.create_task(telling())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        tell()


class Asker:
    """What one worker process holds: the store, the ledger, the jobs. `pool`: (what people call the workers it is one
    of, which ones, how many they are)."""

    def __init__(
        self,
        store: Store,
        providers: Sequence[Provider],
        in_flight: int,
        jobs: Sequence[Job],
        experiment: str = "",
        quota: WorkersEnd | None = None,
        pool: tuple[str, str, int] | None = None,
    ):
        for provider in providers:
            provider.key()
        if quota is not None and pool is not None:
            quota.began(*pool)
        self._store, self._ledger = store, Ledger(store.files, experiment=experiment)
        self._providers, self._in_flight, self._jobs, self._quota = providers, in_flight, jobs, quota

    def answer(self, parts: Sequence[Done], tell: Callable[[Done], None]) -> None:
        """Make `parts`; `tell` hears of each."""

        async def work() -> None:
            made = _answer_parts(
                self._store, self._ledger, self._providers, self._in_flight, self._jobs, parts, self._quota
            )
            async with aclosing(made) as answered:
                async for done in answered:
                    tell(done)

        asyncio.run(work())

    def close(self) -> None:
        self._ledger.close()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """A batch of Ray Data: columns job and part, and in the last row what stopped the work (Ray would lose its
        type)."""
        parts = [Done(int(j), int(k)) for j, k in zip(batch["job"], batch["part"], strict=True)]
        done, stopped = list[Done](), b""
        try:
            self.answer(parts, done.append)
        except (ValueError, OSError) as error:  # raised again by the driver: what a user can mend must read as such
            stopped = pickle.dumps(error)
            done.append(Done(-1, -1))
        return {
            "job": [d.job for d in done],
            "part": [d.part for d in done],
            "stopped": [b""] * (len(done) - 1) + [stopped],
        }


# ---------------------------------------------------------------- many processes


def _in_ray(
    asker: tuple[Any, ...], parts: Sequence[Done], workers: int, tell: Callable[[Done], None], name: str
) -> None:
    """Ray Data shards the parts over `workers` actors; what comes back is one small row a part. One that dies is
    started again by Ray, and its parts are made anew from what the ledger has."""
    import ray

    batch = max(1, min(PARTS_A_BATCH, len(parts) // (2 * workers)))
    blocks = math.ceil(len(parts) / batch)
    rows = [{"job": p.job, "part": p.part} for p in parts]
    size = min(workers, blocks)
    made = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Asker,
        fn_constructor_args=(*asker, (name, uuid.uuid4().hex, size)),
        batch_size=batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1,
    )
    for row in made.iter_rows():
        if row["stopped"]:
            raise pickle.loads(row["stopped"])
        tell(Done(row["job"], row["part"]))


def _here(asker: tuple[Any, ...], parts: Sequence[Done], tell: Callable[[Done], None]) -> None:
    worker = Asker(*asker)
    try:
        worker.answer(parts, tell)
    finally:
        worker.close()


def ask_all(
    jobs: Sequence[Job],
    store: Store,
    providers: Mapping[str, Provider],
    workers: int,
    in_flight: int,
    progress: Report,
    experiment: str = "",
    committed: Callable[[Stage], None] = lambda stage: None,
    written: Callable[[Stage, int], None] = lambda stage, part: None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    quota: WorkersEnd | None = None,
) -> None:
    """Make the stages of `jobs`, whose inputs are finished, with `workers` processes of `in_flight` calls (0: in this
    one). `experiment` is the name under which the ledger notes who paid; `committed` hears of each finished stage,
    `written` of each part.

    Stages of a provider with a batch API (`Provider.batch`) go through it, from this process, after the others; `say`
    gets lines about its batches. `quota` paces all calls and caps their dollars.

    Each stage is committed when its last part is there. Raises ValueError for a missing key or a provider that stopped,
    ConnectionError for one that is down, OSError for a store that fails; what was answered is kept.
    """
    for provider in providers.values():
        provider.key()
    began, writers = time.monotonic(), [store.writer(job.stage) for job in jobs]
    left = {j: set(range(len(job.dialogues))) - writers[j].finished_indices() for j, job in enumerate(jobs)}

    def said(j: int) -> None:
        stage, dialogues = jobs[j].stage, jobs[j].dialogues
        progress(stage, sum(n for k, n in enumerate(dialogues) if k not in left[j]), sum(dialogues))
        if not left[j]:
            _commit(store, writers[j], stage, time.monotonic() - began, experiment)
            committed(stage)

    def tell(done: Done) -> None:
        left[done.job].discard(done.part)
        written(jobs[done.job].stage, done.part)
        said(done.job)

    for j in left:
        said(j)
    if parts := [Done(j, k) for j in left for k in sorted(left[j])]:
        by_batch = {j for j, job in enumerate(jobs) if _provider(job, providers).batch}
        check_places(store.files, providers)
        if at_once := [part for part in parts if part.job not in by_batch]:
            asker = (store, tuple(providers.values()), in_flight, jobs, experiment, quota)
            with batched.watched(store, providers, say):
                if workers:
                    _in_ray(asker, at_once, workers, tell, _named(jobs))
                else:
                    _here(asker, at_once, tell)
        if later := [part for part in parts if part.job in by_batch]:
            batched.fill(store, providers, jobs, later, tell, say, experiment, quota)


def _named(jobs: Sequence[Job]) -> str:
    """ "PROVIDER MODEL" of whom the jobs ask."""
    asked = models(job.stage for job in jobs)
    return ", ".join(f"{provider} {model}" for provider in asked for model in sorted(asked[provider]))


def _provider(job: Job, providers: Mapping[str, Provider]) -> Provider:
    """Whom a stage asks: one provider."""
    (name,) = models([job.stage])
    return providers[name]


def _commit(store: Store, writer: Writer, stage: Stage, wall_s: float, experiment: str) -> None:
    try:
        writer.commit(made={"wall_s": round(wall_s, 3), "experiment": experiment})
    except FileExistsError:  # another run of this stage was first: it had the same parts, and the artifact is the same
        assert store.done(stage)


def ask(
    stage: Stage,
    store: Store,
    providers: Mapping[str, Provider],
    workers: int,
    in_flight: int,
    record_cls: type,
    builder: Builder,
    progress: Report,
) -> None:
    """Make one stage, in the parts of its input `dialogues`. See `ask_all`."""
    dialogues = tuple(part.rows or 0 for part in store.get(stage.inputs["dialogues"]).parts)
    ask_all([Job(stage, record_cls, builder, dialogues)], store, providers, workers, in_flight, progress)
