"""What the result files of a batch say of each of its requests. Lines come in any order, or twice, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from empathy.requests import Answer, Request
from serving.batch_api import Fault
from serving.providers import Provider, ProviderStopped, Retry, read_reply

EXPIRED = "batch_expired"
"""The code of rows that the provider did not get to."""


class Results:
    """Sorts the rows of one batch. `why` is told of rows that no file mentions; `expired`: its time was up."""

    def __init__(self, keys: Sequence[str], why: str, expired: bool = False):
        self.left, self.why = set(keys), why
        """Not answered: to ask again, or refused."""
        self.answered: set[str] = set()
        self.refused: dict[str, Answer] = {}
        self.reasons: dict[str, str] = {}
        self.stop: ProviderStopped | None = None
        """What must be mended before anything more is asked; raised when all that was paid for is kept."""
        self.paid_usd = 0.0
        self.blameless = False
        """What went wrong is no fault of the rows."""
        self.expired = expired

    def read(self, path: Path, provider: Provider, model: str, record: Callable[[str, Answer], None]) -> None:
        """Take a result file; `record(key, answer)` each answer, once."""
        for key, said in _rows(path):
            if key in self.left:
                self._take(key, self._outcome(said, provider, model), provider, model, record)

    def _take(
        self,
        key: str,
        outcome: Answer | Retry,
        provider: Provider,
        model: str,
        record: Callable[[str, Answer], None],
    ) -> None:
        if isinstance(outcome, Retry):
            self.reasons[key] = outcome.reason
        elif outcome.finish_reason == "refused":
            self.refused[key] = outcome
        else:
            record(key, outcome)
            self.left.discard(key)
            self.answered.add(key)
            self.refused.pop(key, None)
            if self.stop is None:
                self.stop = _unaccepted(provider, model, outcome)

    def _outcome(self, said: dict[str, Any], provider: Provider, model: str) -> Answer | Retry:
        response, error = said.get("response"), said.get("error") or {}
        if not response:
            return Retry(f"{error.get('code')}: {error.get('message')}")
        request = Request(provider.name, model, ())
        try:
            return read_reply(provider, request, int(response["status_code"]), {}, orjson.dumps(response.get("body")))
        except ProviderStopped as stop:  # the rows after it are paid for: raised when they are kept
            self.stop = self.stop or stop
            return Retry(str(stop))

    def blame(self, faults: Sequence[Fault], keys: Sequence[str]) -> None:
        """A batch that failed its validation: the lines that are at fault are refused, the others are not to blame."""
        lines = {f.line: f for f in faults if f.line and f.line <= len(keys)}
        for line, fault in lines.items():
            self.refused[keys[line - 1]] = Answer("", "refused", refused=f"{fault.code}: {fault.message}")
        self.blameless = bool(lines)

    @property
    def worked(self) -> bool:
        """Whether the provider did anything with the batch."""
        return bool(self.answered or self.refused)

    def blames(self, key: str) -> bool:
        """Whether a row is itself at fault that nothing came of it: others of its batch were answered, and it was not
        merely left over when the time was up."""
        expired = self.expired and self.reasons.get(key, EXPIRED).startswith(EXPIRED)
        return self.worked and not self.blameless and not expired

    def __str__(self) -> str:
        lost = len(self.left) - len(self.refused)
        said = [f"{len(self.answered):,} answered"]
        said += [f"{len(self.refused):,} refused"] if self.refused else []
        said += [f"{lost:,} without an answer"] if lost else []
        return ", ".join(said)

    def failed(self) -> Iterator[tuple[str, str]]:
        """(key, why) of rows that another batch may heal."""
        return ((k, self.reasons.get(k, self.why)) for k in sorted(self.left - self.refused.keys()))


def custom_ids(path: Path) -> Iterator[str]:
    """Of every row that a result file has, in its order."""
    return (key for key, _ in _rows(path))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, "rb") as lines:
        for line in lines:
            try:
                said = orjson.loads(line)
                key = str(said["custom_id"])
            except (orjson.JSONDecodeError, KeyError, TypeError):  # a damaged line is no reply
                continue
            yield key, said


def _unaccepted(provider: Provider, model: str, answer: Answer) -> ProviderStopped | None:
    try:
        provider.check_served(model, answer.model_served)
    except ProviderStopped as stop:
        return stop
    return None
