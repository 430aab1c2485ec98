"""Stages whose requests go through a provider's batch API (`serving.batches`), from the driver alone.

Nothing is held while a batch is out, for an hour or a day: a part's generators are built, run as far as the ledger
answers, and thrown away; what they would ask next goes into the next batch. When that has ended the part is looked at
again. So the turns of a chat are waves, a batch holds requests of many parts and stages, and memory is bounded by the
batches that may be open.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from cluster.steps.parts import Done, Job, drops
from empathy.requests import Answer, Asking, Request
from empathy.store import Store
from serving.batch_notes import open_notes
from serving.batches import AGAIN, NO_ROOM, Batches
from serving.calls import Counts
from serving.ledger import Ledger
from serving.providers import Provider
from serving.quota import Quota

WATCH_S = 30.0
"""How often a run that sends its requests at once looks for batches that another one left behind."""
Tell = Callable[[str], None]


class _Parts:
    """The parts that are to be made, and which batches they wait for."""

    def __init__(self, store: Store, ledger: Ledger, jobs: Sequence[Job], batches: Batches):
        self._store, self._ledger, self._jobs, self._batches = store, ledger, jobs, batches
        self._waiting: dict[Done, set[str]] = {}

    async def make(self, parts: Sequence[Done], tell: Callable[[Done], None]) -> None:
        todo = deque(parts)
        while todo or self._waiting:
            await self._look_at(todo, tell)
            if self._waiting:
                await self._batches.flush()
                ended = await self._batches.step()
                woken = [part for part, ids in self._waiting.items() if ids & ended]
                for part in woken:
                    del self._waiting[part]
                todo.extendleft(reversed(woken))  # what was begun is finished first

    async def _look_at(self, todo: deque[Done], tell: Callable[[Done], None]) -> None:
        """Look at every part, apart from those of stages for which no more batches may be opened now."""
        full = set[int]()
        for _ in range(len(todo)):
            part = todo.popleft()
            if part.job in full:
                todo.append(part)
            elif waits := await self._look(part):
                self._waiting[part] = waits
                full |= {part.job} if NO_ROOM in waits else set()
            else:
                tell(part)

    async def _look(self, part: Done) -> set[str]:
        """Write the part if everything is answered; else have its next requests asked, and what to wait for."""
        while True:
            records, pending, used = self._run(part)
            if not pending:
                self._write(part, records, used)
                return set()
            waits = set[str]()
            for request in pending:
                waits.add(where := await self._batches.want(request))
                if where == NO_ROOM:
                    break
            if AGAIN not in waits:
                return waits

    def _run(self, part: Done) -> tuple[dict[str, Any], list[Request], dict[str, Answer]]:
        """Run a part's askings on what is known: records by name, requests that are open, answers used by key."""
        job = self._jobs[part.job]
        records, pending, used = dict[str, Any](), list[Request](), dict[str, Answer]()
        for name, asking in job.builder(job.stage, self._store, part.part):
            assert name not in records, f"{job.stage!r}: two askings of part {part.part} have one name"
            outcome = _advance(asking, self._batches, used)
            if isinstance(outcome, Request):
                pending.append(outcome)
            records[name] = outcome
        return records, pending, used

    def _write(self, part: Done, records: Mapping[str, Any], used: Mapping[str, Answer]) -> None:
        counts, job, ordered = Counts(), self._jobs[part.job], list(records.values())
        for key, answer in used.items():
            if key in self._batches.fresh:
                self._batches.fresh.discard(key)  # whoever needs it too has it from the ledger
                counts.calls += answer.attempts
                counts.retries += answer.attempts - 1
                counts.tokens_in += answer.tokens_in or 0
                counts.tokens_out += answer.tokens_out or 0
            else:
                counts.had(answer, self._ledger.experiment)
        said = {**drops(ordered), **{name: n for name, n in counts.as_dict().items() if n}}
        self._store.writer(job.stage).write_records(part.part, ordered, job.record_cls, said)


def _advance(asking: Asking[Any], batches: Batches, used: dict[str, Answer]) -> Any:
    """The record of an asking, or the first request of it that is not answered yet."""
    try:
        request = next(asking)
        while (answer := batches.answer(request)) is not None:
            used[request.key] = answer
            request = asking.send(answer)
    except StopIteration as end:  # how a generator returns its value
        return end.value
    asking.close()
    return request


def fill(
    store: Store,
    providers: Mapping[str, Provider],
    jobs: Sequence[Job],
    parts: Sequence[Done],
    tell: Callable[[Done], None],
    say: Tell,
    experiment: str = "",
    quota: Quota | None = None,
) -> None:
    """Make `parts` through the providers' batch APIs; `tell` hears of each part, `say` gets lines for people.

    Batches that a former run left open are taken up first. Raises what `ask_all` raises; open batches stay open, and
    the next run goes on with them.
    """

    async def work() -> None:
        with Ledger(store.files, experiment=experiment) as ledger:
            async with Batches(store.files, ledger, providers, say, quota) as batches:
                await batches.adopt()
                await _Parts(store, ledger, jobs, batches).make(parts, tell)

    asyncio.run(work())


# ---------------------------------------------------------------- beside requests that are sent at once


@contextmanager
def watched(store: Store, providers: Mapping[str, Provider], say: Tell) -> Iterator[None]:
    """Inside, batches that a former run left open at `providers` are looked after: somebody may wait for their answers.

    Raises at the end what went wrong with them.
    """
    ended, errors = threading.Event(), list[Exception]()

    def guarded() -> None:
        try:
            asyncio.run(_watch(store, providers, say, ended))
        except Exception as error:  # noqa: BLE001  raised again below: a thread has no caller
            say(f"batches of an earlier run: {error}")
            errors.append(error)

    thread = threading.Thread(target=guarded, name="batches", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]


async def _watch(store: Store, providers: Mapping[str, Provider], say: Tell, ended: threading.Event) -> None:
    looking = asyncio.create_task(_look_after(store, providers, say))
    ending = asyncio.create_task(asyncio.to_thread(ended.wait))
    await asyncio.wait([looking, ending], return_when=asyncio.FIRST_COMPLETED)
    if looking.done():
        looking.result()
    looking.cancel()  # the batches stay open, and noted
    await asyncio.gather(looking, return_exceptions=True)
    if not looking.cancelled() and (error := looking.exception()):
        raise error


async def _look_after(store: Store, providers: Mapping[str, Provider], say: Tell) -> None:
    with ExitStack() as stack:
        ledger = None
        while True:
            if any(note.provider in providers for note in open_notes(store.files)):
                ledger = ledger or stack.enter_context(Ledger(store.files))
                async with Batches(store.files, ledger, providers, say) as batches:
                    await batches.adopt()
                    while batches.open:
                        await batches.step()
            await asyncio.sleep(WATCH_S)
