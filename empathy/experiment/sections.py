"""What every table of an experiment file is made of."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGEST_NAME = 100


def _named(name: str) -> str:
    if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME:
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    better = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain)[:_LONGEST_NAME].strip("_.-")
    raise ValueError(
        f"a name has letters (A to Z, a to z), digits, _, . and - in it, begins with a letter or a digit, and is at "
        f"most {_LONGEST_NAME} characters long" + (f"; {better!r} is one" if better else "")
    )


Name = Annotated[str, AfterValidator(_named)]
"""A word that can name a folder, a model behind an endpoint and a student of the grid."""


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
