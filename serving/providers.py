"""Who answers: where a provider is, what names its key, and what its replies mean.

The rules here are pure: from status, headers and body to an Answer, a wait, or a stop.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import orjson

from empathy.requests import Answer, Request
from serving.rates import Limit


class ProviderStopped(ValueError):
    """The provider will answer nothing until somebody mends something: a key, a balance, a URL, a model's name."""


class ProviderDown(ConnectionError):
    """The provider answers nothing now. Start again later: what was answered is in the ledger."""


@dataclass(frozen=True)
class Batching:
    """How a provider's batch API is used; the limits are OpenAI's. `price` is what a token costs there, of its price
    at once; `asks` bounds in how many batches one request goes in vain."""

    poll_s: float = 60.0
    requests: int = 50_000
    file_bytes: int = 200_000_000
    at_once: int = 8
    asks: int = 3
    price: float = 0.5
    settle_s: float = 15.0
    """How long a batch whose creation was not answered may take to show up in the provider's list."""


@dataclass(frozen=True)
class Provider:
    """An OpenAI-compatible server. It names its secret (`key_env` or `key_file`) and never holds it.

    `timeout_s` is the deadline of one attempt from connecting to the last byte; `attempts` bounds how often one
    request is sent in vain before it is asked whose fault that is (`serving.blame`), `patience_s` how long 429s may
    go on, and how long the provider may be away. `served` lists models whose replies
    are accepted besides the one asked for (its dated versions always are); "*" accepts any.
    """

    name: str
    base_url: str
    key_env: str | None = None
    key_file: str | None = None
    in_flight: int | None = None
    timeout_s: float = 120.0
    attempts: int = 6
    patience_s: float = 600.0
    backoff_s: float = 0.5
    served: tuple[str, ...] = ()
    batch: Batching | None = None
    """Whole stages are asked through the provider's batch API."""

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def named(self) -> str:
        """For messages: its name and place."""
        return f"provider {self.name!r} ({self.base_url})"

    @property
    def secret_named(self) -> str:
        """For messages: what the user has to set."""
        if self.key_file:
            return f"the file {self.key_file} (key_file)"
        return f"the environment variable {self.key_env}" if self.key_env else "key_env (none is set for this provider)"

    def key(self) -> str | None:
        """The API key, or None when the provider wants none. Raises ValueError when it is named and not there."""
        if self.key_file:
            path = Path(self.key_file).expanduser()
            found = path.read_text().strip() if path.is_file() else ""
        elif self.key_env:
            found = os.environ.get(self.key_env, "").strip()
        else:
            return None
        if not found:
            raise ValueError(f"{self.named} needs an API key: put it into {self.secret_named}")
        if not found.isprintable() or " " in found:
            raise ValueError(f"{self.named}: the key in {self.secret_named} holds a blank or a line break; put one key")
        return found

    def accepts(self, asked: str, served: str | None) -> bool:
        """Whether a reply of model `served` answers a request for `asked`. A provider that does not say is believed."""
        if served is None or served == asked or served in self.served or "*" in self.served:
            return True
        return (
            served.startswith(asked)
            and re.fullmatch(r"-(\d{4}-\d\d-\d\d|\d{8}|\d{4}|\d{3})", served[len(asked) :]) is not None
        )

    def check_served(self, asked: str, served: str | None) -> None:
        """Raises ProviderStopped when another model answered than was asked."""
        if not self.accepts(asked, served):
            raise ProviderStopped(
                f"provider {self.name!r}: asked for model {asked!r}, {served!r} answered. Its replies are kept: ask "
                f"for {served!r}, or allow it by served = [{served!r}] in [providers.{self.name}] of the profile. Or "
                "have that mended there: the next run pays one reply to see whether it is"
            )


@dataclass(frozen=True)
class Retry:
    """This attempt gave nothing that can be used; another may. `after_s` is the provider's own wish, `limited` a 429.

    `unknown`: it was sent and nothing came back, so it may have been billed. `broken`: a success without a completion,
    so it may have been billed too.
    """

    reason: str
    after_s: float | None = None
    limited: bool = False
    unknown: bool = False
    broken: bool = False


_ROW_ONLY = {400, 413, 422}
MEND = {
    401: "the key was not accepted; check {secret}",
    402: "the balance is used up (or the plan does not cover this); {secret} names the account",
    403: "this key may not use the model; check {secret} and the account's access",
    404: "nothing is there; check base_url and the model's name {model!r}",
}


def read_reply(
    provider: Provider, request: Request, status: int, headers: Mapping[str, str], raw: bytes
) -> Answer | Retry:
    """What an HTTP response means. Raises ProviderStopped when no further request will be answered either."""
    if status == 200:
        return _completion(raw)
    said = message(raw)
    if status == 429 and "insufficient_quota" in said:
        status = 402
    if status in MEND:
        hint = MEND[status].format(secret=provider.secret_named, model=request.model)
        raise ProviderStopped(f"{provider.named} answered {status}: {hint}. It said: {said}")
    if status in _ROW_ONLY:
        return Answer("", "refused", refused=f"HTTP {status}: {said}")
    if status == 429 or status == 408 or status >= 500:
        return Retry(f"HTTP {status}: {said}", retry_after_s(headers.get("Retry-After")), limited=status == 429)
    raise ProviderStopped(f"{provider.named} answered {status}, which is no API's answer: {said}")


MOST_TOKENS = 1 << 32
"""No one reply has so many: whoever counts more, or fewer than none, has not counted."""


def _completion(raw: bytes) -> Answer | Retry:
    try:
        body: Any = orjson.loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish, served, usage = choice.get("finish_reason"), body.get("model"), body.get("usage")
    except (
        orjson.JSONDecodeError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ):  # a proxy's page, or a reply cut off
        return Retry(f"no completion in the reply: {_shown(raw)}", broken=True)
    if not all(isinstance(said, str | None) for said in (text, refusal, finish, served)):
        return Retry(f"a completion's content, refusal, finish_reason or model is no text: {_shown(raw)}", broken=True)
    if finish == "content_filter":
        refusal = refusal or "content filter"
    return Answer(
        text=text or "",
        finish_reason=finish or "stop",
        model_served=served or None,
        tokens_in=_tokens(usage, "prompt_tokens"),
        tokens_out=_tokens(usage, "completion_tokens"),
        refused=refusal or None,
    )


def _tokens(usage: Any, name: str) -> int | None:
    """None, unknown, for what is no count: a negative one would give dollars back."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < MOST_TOKENS else None


def message(raw: bytes) -> str:
    """The error's text, short."""
    try:
        error = orjson.loads(raw)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):  # not OpenAI's shape: show what came
        return _shown(raw)
    if isinstance(error, dict):
        return _shown(" ".join(str(error[k]) for k in ("code", "message") if error.get(k)).encode())
    return _shown(str(error).encode())


_SECRETS = re.compile(r"(?i)\b(bearer\s+|sk-)[\w\-.*]{6,}")


def _shown(raw: bytes) -> str:
    """At most 200 characters on one line, with what looks like a key blotted out."""
    return _SECRETS.sub("(secret)", " ".join(raw[:2000].decode(errors="replace").split()))[:200] or "(empty)"


def retry_after_s(value: str | None, now_s: float | None = None) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date (RFC 9110, 10.2.3); None when it
    says neither."""
    if value is None:
        return None
    try:
        wished_s = float(value)
        return None if math.isnan(wished_s) else max(0.0, wished_s)
    except ValueError:  # then it should be a date
        pass
    try:
        when = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):  # neither: as if absent
        return None
    return max(0.0, when - (time.time() if now_s is None else now_s))


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def announced_limit(headers: Mapping[str, str]) -> Limit | None:
    """The limits a minute that `x-ratelimit-limit-requests` and `-tokens` (OpenAI's names) tell; None when they tell
    none."""
    requests = _a_minute(headers, "requests")
    tokens = _a_minute(headers, "tokens")
    return None if requests is None and tokens is None else Limit(requests, tokens)


def _a_minute(headers: Mapping[str, str], what: str) -> float | None:
    """The limit, unless its reset says that it is of a day: no header names the period.

    A bucket needs period * used / limit to be full again; a window is new within its period. An hour is between a
    minute and a day, and by far from both.
    """
    limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
    if not limit:
        return None
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    reset_s = sum(
        float(n) * _SECONDS[unit] for n, unit in _DURATION.findall(headers.get(f"x-ratelimit-reset-{what}", ""))
    )
    used = limit - (limit if remaining is None else remaining)
    if reset_s > 60 or (used >= 1 and limit * reset_s / used > 3600):
        return None
    return limit


def _number(value: str | None) -> float | None:
    """None for what is no number, as if the header were absent."""
    return float(value) if value is not None and re.fullmatch(r"\d+(\.\d+)?", value) else None
