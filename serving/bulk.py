"""Bulk generation: requests in, replies out as they finish, many in flight, over the loss of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

BACKPRESSURE_WAIT_S = 0.2
RESTART_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class StudentRequest:
    """One reply asked of one student. `id` is the caller's; temperature 0 is greedy; stop strings end a reply."""

    id: str
    student: str
    prompt_ids: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """finish_reason: "stop" (end token or stop string) or "length". token_ids holds the end token, text does not."""

    id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that the engine cannot answer (too long, unknown student), with the reason."""

    id: str
    reason: str


class EngineLost(RuntimeError):
    """The engine died again and again under the same requests."""


def generate_all(
    handle: Any,
    requests: Iterable[StudentRequest],
    *,
    in_flight: int,
    chunk: int = 16,
    max_losses: int = 3,
    timeout_s: float = 3600.0,
    on_loss: Callable[[], None] = lambda: None,
) -> Iterator[Completion | Unanswered]:
    """Yield one Completion or Unanswered for each request, in the order in which they finish.

    `in_flight` requests at least (2 x max_num_seqs x replicas keeps every engine full) travel in chunks of `chunk`;
    a chunk comes back whole or not at all, so nothing is lost or doubled. `requests` is read lazily: any number fits.
    `on_loss` is called, from any thread, for each chunk whose replica died; the chunk is asked again.
    Raises EngineLost when one chunk has seen `max_losses` + 1 replicas die, TimeoutError when one takes `timeout_s`.
    """
    workers = -(-in_flight // chunk)
    source = iter(requests)
    chunks = iter(lambda: list(islice(source, chunk)), [])
    pool = ThreadPoolExecutor(workers, thread_name_prefix="generate")
    try:
        pending: set[Future[list[Completion | Unanswered]]] = set()
        while True:
            for requests_of_chunk in islice(chunks, workers - len(pending)):
                pending.add(pool.submit(_answer, handle, requests_of_chunk, max_losses, timeout_s, on_loss))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    handle: Any, chunk: list[StudentRequest], max_losses: int, timeout_s: float, on_loss: Callable[[], None]
) -> list[Completion | Unanswered]:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    losses = 0
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            left_s = deadline - time.monotonic()
            answers: list[Completion | Unanswered] = handle.generate.remote(chunk).result(timeout_s=left_s)
            return answers
        except BackPressureError:  # the endpoint's users fill the queue: wait our turn
            time.sleep(BACKPRESSURE_WAIT_S)
        except RayActorError as error:  # the replica died under these requests; Serve starts another
            losses += 1
            on_loss()
            if losses > max_losses:
                ids = ", ".join(request.id for request in chunk[:5])
                text = f"{losses} replicas died while they answered requests {ids}, …: see the engine's log"
                raise EngineLost(text) from error
            time.sleep(RESTART_WAIT_S)
