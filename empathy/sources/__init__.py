"""Raw rows -> Dialogue. The union below is the registry: one file and one name in it add a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from empathy.sources.empathetic_dialogues import EmpatheticDialogues
from empathy.sources.esconv import Esconv
from empathy.sources.jsonl import Jsonl
from empathy.sources.sample import Sample
from empathy.sources.welivita_pu import WelivitaPu

AnySource = WelivitaPu | EmpatheticDialogues | Esconv | Jsonl | Sample
Source = Annotated[AnySource, Field(discriminator="type")]
_ADAPTER: TypeAdapter[AnySource] = TypeAdapter(Source)

__all__ = ["AnySource", "EmpatheticDialogues", "Esconv", "Jsonl", "Sample", "Source", "WelivitaPu", "parse"]


def parse(config: Mapping[str, Any]) -> AnySource:
    """The source of {"type": ..., "path": ..., options}. Raises ValueError naming the field and the names that
    exist."""
    return _ADAPTER.validate_python(dict(config))
