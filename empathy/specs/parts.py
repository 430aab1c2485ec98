"""What every spec is made of."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Frozen, closed (a misspelt field is an error), and deterministic to serialise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Spec(Part):
    """What a stage is. Subclasses name their `kind` and `revision`."""

    kind: ClassVar[str]
    revision: ClassVar[int] = 1
