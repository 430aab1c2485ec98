"""What a model's tokens cost. A price that nobody has told is unknown (None), never zero."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

EMBEDDED = "embedded"
"""The provider that every run brings along: its answers cost nothing."""


class Price(BaseModel):
    """US dollars a million tokens, and the day (YYYY-MM-DD) for which that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    usd_per_million_in: float = Field(ge=0)
    usd_per_million_out: float = Field(ge=0)
    as_of: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d|always)$")]

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """Dollars for so many tokens."""
        return (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6


FREE = Price(usd_per_million_in=0, usd_per_million_out=0, as_of="always")
"""What nobody sends a bill for. An engine of our own costs GPU-hours instead."""


@cache
def listed() -> Mapping[str, Mapping[str, Price]]:
    """The table that ships with the package (serving/prices.toml): provider -> model -> price."""
    text = (files("serving") / "prices.toml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, dict[str, Price]]).validate_python(tomllib.loads(text))


@dataclass(frozen=True)
class Prices:
    """`own` are the user's prices by model, whoever provides it, or by "PROVIDER/MODEL"; they win over the list.
    `free` are the providers that send no bill: the embedded one and engines that the run serves itself."""

    own: Mapping[str, Price] = field(default_factory=dict)
    free: Iterable[str] = (EMBEDDED,)

    def of(self, provider: str, model: str) -> Price | None:
        """The price of a model at a provider; None when it is unknown."""
        if provider in self.free:
            return FREE
        told = self.own.get(f"{provider}/{model}") or self.own.get(model)
        return told or listed().get(provider, {}).get(model)
