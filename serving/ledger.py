"""Replies that were paid for: kept by request key, shared by every run on one store, never asked for again.

Three rules make it hold.
1. A reply is written to its writer's journal the moment it arrives (`serving.journals`), and only completed replies
are.
2. A request is sent only by who claimed its key first (`serving.claims`); everybody else waits for that writer's reply.
3. A claim ends with its reply, when its holder gives up, or when its holder is dead (`serving.presence`). A batch at a
provider holds its claims itself, until its note is closed (`serving.batch_notes`).

`Ledger` does blocking I/O and is driven by one thread at a time, except `get` and `record`, which may run beside it.
`serving.claiming` speaks to it for coroutines.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import orjson

from empathy.files import Files
from empathy.requests import Answer, Request
from serving.batch_notes import is_batch, keepers
from serving.claims import Claims
from serving.journals import open_journals
from serving.presence import STALE_S, Presence

_SIZE_BITS = 26  # a line is shorter than 64 MiB
_BEGINS = re.compile(rb'\{"key":"[0-9a-f]{40}",')
_KEY = slice(8, 48)  # of a line: 40 hex digits


_FIELDS = {"model", "text", "finish_reason", "model_served", "tokens_in", "tokens_out", "refused", "attempts"}


def is_reply(line: bytes) -> bool:
    """Whether a line of a journal is whole."""
    return _BEGINS.match(line) is not None and line.endswith(b"}\n")


def parse_reply(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that `Ledger.record` did not write so."""
    try:
        told: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:  # damaged: as if absent
        return None
    sound = told.keys() >= _FIELDS and isinstance(told["text"], str) and isinstance(told["model"], str)
    return told if sound else None


@dataclass(frozen=True)
class Asked:
    """What is left of a request when only its key is known: its reply came out of a batch of an earlier process."""

    key: str
    provider: str
    model: str


@dataclass(frozen=True)
class Spent:
    """What the replies of one model in a ledger add up to. Tokens are of those replies whose provider counted them."""

    requests: int
    tokens_in: int
    tokens_out: int
    uncounted: int


class Ledger:
    """All replies under one store, and our own journal in it. Use as a context manager, or `close` it.

    `experiment` is the name of who pays: it stands in the lines that we record, and is no part of a reply's key.
    """

    experiment = ""

    def __init__(self, files: Files, stale_s: float = STALE_S, experiment: str = ""):
        self.experiment = experiment
        self.writer = uuid.uuid4().hex[:16]
        self._places: dict[bytes, int] = {}
        self.damaged = set[str]()
        self._journals = open_journals(files, self.writer)
        self._files, self._loaded = files, False
        self._claims = Claims(files, self.writer, self._read_last)
        self._presence = Presence(files, self.writer, self._journals.flush, stale_s)
        self._claims.load()
        for (
            writer
        ) in self._journals.writers():  # after the claims: a claim that a snapshot leaves out has its reply here
            self._tail(writer)
        self._loaded = True

    # ---------------------------------------------------------------- replies

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The reply to the request of this key, from memory's index and one read of its line; None when there is
        none, and for a line that was damaged inside: it is asked for again, and its key is noted in `damaged`."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        line = self._line(place)
        if line is None:
            self.forget(key)
            self.damaged.add(key)
            return None
        return Answer(
            text=line["text"],
            finish_reason=line["finish_reason"],
            model_served=line["model_served"],
            tokens_in=line["tokens_in"],
            tokens_out=line["tokens_out"],
            refused=line["refused"],
            attempts=line["attempts"],
            paid_by=line.get("experiment", ""),
        )

    def _line(self, place: int) -> dict[str, Any] | None:
        return parse_reply(self._journals.read(place >> _SIZE_BITS, place & ((1 << _SIZE_BITS) - 1)))

    def record(
        self, request: Request | Asked, answer: Answer, experiment: str | None = None, price: float = 1.0
    ) -> None:
        """Keep a completed reply. Raises OSError when it cannot be written: then nothing more should be bought.

        `experiment` is who paid, if not ours; `price` the share of the model's price that was paid.
        """
        payer = self.experiment if experiment is None else experiment
        line = orjson.dumps(
            {
                "key": request.key,
                "provider": request.provider,
                "model": request.model,
                "model_served": answer.model_served,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "tokens_in": answer.tokens_in,
                "tokens_out": answer.tokens_out,
                "refused": answer.refused,
                "attempts": answer.attempts,
                "at": round(time.time(), 3),
            }
            | ({"experiment": payer} if payer else {})
            | ({"price": price} if price != 1 else {}),
            option=orjson.OPT_APPEND_NEWLINE,
        )
        self._index(request.key, self._journals.append(line), len(line))

    def forget(self, key: str) -> None:
        """Take a reply as absent (its served model is not acceptable), so that it may be claimed and asked for
        again."""
        self._places.pop(bytes.fromhex(key), None)

    def _index(self, key: str, place: int, size: int) -> None:
        self._places[bytes.fromhex(key)] = place << _SIZE_BITS | size
        self._claims.settle(key)

    def _tail(self, writer: str) -> None:
        """Read what `writer` has added to its journal. A key that another journal has too was asked again because its
        line there is damaged: which of the two is read last must not matter."""
        if writer == self.writer:
            return
        for place, block in self._journals.fetch(writer):
            for line in block.splitlines(keepends=True):
                if is_reply(line):  # a damaged one is asked for again
                    key = line[_KEY].decode()
                    if key not in self or parse_reply(line) is not None:
                        self._index(key, place, len(line))
                place += len(line)

    def _read_last(self, holder: str) -> None:
        """Read what a dead holder wrote. A batch's replies are in the journals of those who looked after it."""
        if not is_batch(holder):
            self._tail(holder)
        elif self._loaded:  # else all journals are read after the claims
            writers = keepers(self._files, holder)
            for writer in self._journals.writers() if writers is None else writers:
                self._tail(writer)

    # ---------------------------------------------------------------- claims

    def claim(self, keys: Sequence[str], batch: str | None = None) -> set[str]:
        """Those of `keys` that are ours to ask from now on: no reply, and nobody alive holds them. One record for all.

        The others have their reply by now (`key in ledger`) or are held by somebody: ask again in a while. With `batch`
        (a holder's name, whose note is open) they are claimed for it, and stay so without this process.
        """
        self._presence.announce()
        self._claims.refresh()
        while True:
            dead = self._dead_among(keys)
            free = [k for k in keys if k not in self and self._claims.owner(k) in (None, *dead)]
            if not free:
                return set()
            by = {"writer": batch} if batch else {}
            if self._claims.append(by | {"keys": free} | ({"dead": dead} if dead else {})):
                self._snapshot()
                return set(free)

    def _dead_among(self, keys: Sequence[str]) -> list[str]:
        """The dead holders of `keys`, after reading what living and dead holders have written."""
        holders = {o for k in keys if (o := self._claims.owner(k)) is not None and o != self.writer}
        dead = sorted(o for o in holders if not self._presence.alive(o))
        for holder in holders:  # after the look at who lives: what a dead one wrote last is read
            if holder in dead:
                self._read_last(holder)
            elif not is_batch(holder):
                self._tail(holder)
        return dead

    def held_by(self, holder: str, writers: Sequence[str]) -> set[str]:
        """What a batch has claimed that is not answered; `writers` looked after it before."""
        for writer in writers:
            self._tail(writer)
        return set(self._claims.held(holder))

    def end(self, holder: str) -> None:
        """A batch's note is closed: what it claimed and did not answer is free."""
        while self._claims.held(holder) and not self._claims.append({"dead": [holder]}):
            pass

    def holds(self, key: str) -> bool:
        """Whether the key is still ours to ask (others may have taken us for dead)."""
        return self._presence.fresh and self._claims.owner(key) == self.writer

    def renew(self) -> None:
        """Beat now and learn what others claimed. Raises OSError when the store cannot be reached."""
        self._presence.beat()
        self._claims.refresh()

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Give back claims whose requests will not be answered by us; all that are open without `keys`."""
        mine = [
            k
            for k in (self._claims.held(self.writer) if keys is None else keys)
            if self._claims.owner(k) == self.writer
        ]
        while mine and not self._claims.append({"released": sorted(mine)}):
            pass

    def _snapshot(self) -> None:
        if self._claims.snapshot_due:
            for holder in self._claims.holders():
                if not is_batch(holder):
                    self._tail(holder)
            self._claims.snapshot()

    # ---------------------------------------------------------------- ends and sums

    def flush(self) -> None:
        """Return when every recorded reply is durable."""
        self._journals.flush()

    def close(self) -> None:
        """Flush, give back what is open, and take our name off the list of living writers."""
        try:
            self.flush()
            try:
                self.release()
            finally:  # what could not be given back (a full disk) is free as soon as nobody beats for it
                self._presence.withdraw()
        finally:
            self._journals.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def summary(self) -> dict[str, Spent]:
        """Requests and tokens by model asked, over all replies known now; reads every line once."""
        sums: dict[str, list[int]] = {}
        for place in self._places.values():
            line = self._line(place)
            if line is None:
                continue
            counted = line["tokens_in"] is not None and line["tokens_out"] is not None
            one = (1, line["tokens_in"] or 0, line["tokens_out"] or 0, 0 if counted else 1)
            sums[line["model"]] = [a + b for a, b in zip(sums.get(line["model"], (0, 0, 0, 0)), one, strict=True)]
        return {model: Spent(*numbers) for model, numbers in sorted(sums.items())}
