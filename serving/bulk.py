"""Bulk generation: requests in, replies out as they finish, many in flight, over the loss of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
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
    adapters: Mapping[str, str] = MappingProxyType({}),
    max_losses: int = 3,
    timeout_s: float = 3600.0,
    on_loss: Callable[[], None] = lambda: None,
) -> Iterator[Completion | Unanswered]:
    """Yield one Completion or Unanswered for each request, in the order in which they finish.

    `in_flight` requests at least (2 x max_num_seqs x replicas keeps every engine full) travel in chunks of `chunk`;
    a chunk comes back whole or not at all, so nothing is lost or doubled. `requests` is read lazily: any number fits.
    `adapters`: name -> LoRA folder of students that were loaded after the engine's start: a new replica needs them.
    `on_loss` is called, from any thread, for each chunk whose replica died; the chunk is asked again.
    Raises EngineLost when one chunk has seen `max_losses` + 1 replicas die, TimeoutError when one takes `timeout_s`.
    """
    workers = -(-in_flight // chunk)

    def ask(chunk: list[StudentRequest]) -> list[Completion | Unanswered]:
        theirs = _needed(chunk, adapters)
        ids = ", ".join(request.id for request in chunk[:5])
        return patiently(
            lambda left_s: handle.generate.remote(chunk, theirs).result(timeout_s=left_s),
            f"they answered requests {ids}, …",
            max_losses,
            timeout_s,
            on_loss,
        )

    source = iter(requests)
    chunks = iter(lambda: list(islice(source, chunk)), [])
    pool = ThreadPoolExecutor(workers, thread_name_prefix="generate")
    try:
        pending: set[Future[list[Completion | Unanswered]]] = set()
        while True:
            for requests_of_chunk in islice(chunks, workers - len(pending)):
                pending.add(pool.submit(ask, requests_of_chunk))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _needed(chunk: Sequence[StudentRequest], adapters: Mapping[str, str]) -> dict[str, str]:
    """The adapters that a replica must have before it answers `chunk`.

    With the first of them the base answers through the zero adapter, which it must do where others may be answered
    beside it (see `adapters.write_zero_adapter`): a chunk of the base's alone takes any one along.
    """
    asked = {request.student for request in chunk}
    return {name: adapters[name] for name in asked & adapters.keys() or list(adapters)[:1]}


def patiently(
    ask: Callable[[float], T],
    doing: str,
    max_losses: int = 3,
    timeout_s: float = 3600.0,
    on_loss: Callable[[], None] = lambda: None,
) -> T:
    """What `ask(seconds left)` returns: asked again while the queue is full, and of the next replica when one dies.

    Raises EngineLost, saying what they were `doing`, when `max_losses` + 1 have died.
    """
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    losses = 0
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask(deadline - time.monotonic())
        except BackPressureError:  # the endpoint's users fill the queue: wait our turn
            time.sleep(BACKPRESSURE_WAIT_S)
        except RayActorError as error:  # the replica died under it; Serve starts another
            losses += 1
            on_loss()
            if losses > max_losses:
                raise EngineLost(f"{losses} replicas died while {doing}: see the engine's log") from error
            time.sleep(RESTART_WAIT_S)
