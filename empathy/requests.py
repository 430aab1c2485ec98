"""What is asked of a paid model, apart from how it is sent.

An `Asking` is a generator: it yields a Request, is sent the Answer, and returns its record. One turn or three, one
attempt or several: the domain writes plain sequential code, and whoever drives the generators (`serving.client`)
keeps many in flight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from empathy.records import Turn
from empathy.stages import canonical

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One chat completion. Equal requests are one request: its reply is paid for once. `sample` tells wished-for
    repeats apart."""

    provider: str
    model: str
    messages: tuple[Turn, ...]
    temperature: float = 0.0
    max_tokens: int = 200
    seed: int | None = None
    sample: int = 0
    json_reply: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """The OpenAI-shaped JSON body."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [t.as_message() for t in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.seed is not None:
            body["seed"] = self.seed
        if self.json_reply:
            body["response_format"] = {"type": "json_object"}
        return body

    @cached_property
    def key(self) -> str:
        """The ledger's key: sha256 over provider, body and sample, 40 hex digits."""
        text = canonical({"provider": self.provider, "body": self.body, "sample": self.sample})
        return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Answer:
    """What came back. `refused` is set when the provider will not answer this request, however often it is sent (HTTP
    400, content filter): the row is lost, not the run. Token counts are None where the provider did not say.
    """

    text: str
    finish_reason: str = "stop"
    model_served: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    refused: str | None = None
    attempts: int = 1
    paid_by: str = ""
    """The experiment whose run bought it; "" where that is not known, and for an answer that has just come."""


Asking = Generator[Request, Answer, T]
