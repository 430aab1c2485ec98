"""What every table of an experiment file is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def listed(value: Any) -> Any:
    """A single value is short for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


LISTED = BeforeValidator(listed)
MOST_TOKENS = 1_000_000
"""Of one reply, or of one example."""
MOST_TEMPERATURE = 100.0
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy and torch both take."""
