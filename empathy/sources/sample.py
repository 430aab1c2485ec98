"""200 dialogues written for this project, shipped in the package: what the demo runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from empathy.records import Dialogue
from empathy.sources.clean import Bad
from empathy.sources.common import SourceConfig
from empathy.sources.jsonl import read_jsonl

_FILE = Path(__file__).parent / "sample" / "dialogues.jsonl"


class Sample(SourceConfig):
    """Needs no path."""

    type: Literal["sample"] = "sample"

    def locate(self) -> Path:
        assert _FILE.is_file(), f"the package lacks {_FILE}"
        return _FILE

    def rows(self) -> Iterator[Dialogue | Bad]:
        return read_jsonl(self.locate())
