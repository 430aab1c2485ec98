"""Which dialogues, and which of them are the test."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from empathy.parts import Seed64
from empathy.records import Split
from empathy.specs.parts import Part, Spec


class PaperSplit(Part):
    """W&P: test = dialogues with fewer than two of the five replies rated 3, the rest train."""

    type: Literal["paper"] = "paper"


class RandomSplit(Part):
    """Dialogue by dialogue, seeded, independent of the order of rows."""

    type: Literal["random"] = "random"
    test_fraction: float = Field(0.125, ge=0, lt=1)
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    seed: Seed64 = 0


class GroupSplit(Part):
    """Whole groups (W&P `part_no`, persona, conversation) go to one side."""

    type: Literal["group"] = "group"
    test_fraction: float = Field(0.125, ge=0, lt=1)
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    seed: Seed64 = 0


class OfficialSplit(Part):
    """The split that the source itself publishes."""

    type: Literal["official"] = "official"


SplitSpec = Annotated[PaperSplit | RandomSplit | GroupSplit | OfficialSplit, Field(discriminator="type")]


class DialoguesSpec(Spec):
    """Rows of a source as dialogues in parts of `part_rows`. Input `without` (optional): dialogues that must not
    appear here."""

    kind: ClassVar[str] = "dialogues"
    source: str
    digest: str
    """sha256 of the source's content: the data is identity, its path is not."""
    options: dict[str, Any] = Field(default_factory=dict)
    split: SplitSpec
    only: Split | None = None
    """Keep one side of the split alone."""
    limit: int | None = Field(None, ge=1)
    """A seeded sample of this many dialogues."""
    seed: int = 0
    part_rows: int = Field(256, ge=1)
