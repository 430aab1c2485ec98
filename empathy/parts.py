"""What specs and sections of specs are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What a seed of draws that we make ourselves may be: what JSON and parquet hold."""


class Part(BaseModel):
    """Frozen, closed (a misspelt field is an error), and deterministic to serialise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
