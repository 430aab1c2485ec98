"""[data]: which dialogues, and which of them are the test."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from empathy import screens
from empathy.experiment.sections import Section
from empathy.parts import Seed64
from empathy.sources import Source
from empathy.specs import GroupSplit, RandomSplit, SplitSpec
from empathy.words import instead


def _split(value: Any) -> Any:
    """`split = "paper"` is short for `split = { type = "paper" }`."""
    return {"type": value} if isinstance(value, str) else value


def _leaves_train(split: SplitSpec) -> SplitSpec:
    if isinstance(split, RandomSplit | GroupSplit) and split.test_fraction + split.valid_fraction >= 1:
        raise ValueError(
            f"test_fraction = {split.test_fraction} and valid_fraction = {split.valid_fraction}: nothing is left to "
            "train on; together they must be less than 1"
        )
    return split


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [n for n in names if n not in screens.NAMES]
    if unknown:
        raise ValueError(f"unknown screen {unknown[0]!r}{instead(unknown[0], screens.NAMES)}")
    return names


Screens = Annotated[tuple[str, ...], AfterValidator(_known)]
"""Names of `empathy.screens`."""
SplitField = Annotated[SplitSpec, BeforeValidator(_split), AfterValidator(_leaves_train)]


class Data(Section):
    """Which dialogues, and which of them are the test."""

    source: Source
    split: SplitField
    limit: int | None = Field(None, ge=1, lt=2**63)
    part_rows: int = Field(256, ge=1, le=1_000_000)
    seed: Seed64 = 0
    screens: Screens = ()
    """What drops a model's reply from training, where the arms do not say; () keeps all."""
    max_dropped: float = Field(0.2, ge=0, le=1)

    @property
    def has_valid(self) -> bool:
        """Whether there are dialogues on the side `valid`, which nothing is learned from and nobody is tested on; a
        `limit` may leave none of them. Reads the source under its official split."""
        if isinstance(self.split, RandomSplit | GroupSplit):
            return self.split.valid_fraction > 0
        return self.split.type == "official" and self.source.has_valid()

    @field_validator("split")
    @classmethod
    def _leaves_test(cls, split: SplitSpec) -> SplitSpec:
        if isinstance(split, RandomSplit | GroupSplit) and split.test_fraction == 0:
            raise ValueError("test_fraction = 0: students are compared on test dialogues; give more than 0")
        return split
