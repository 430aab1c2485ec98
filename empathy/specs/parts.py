"""What every spec is made of."""

from __future__ import annotations

from typing import ClassVar

from empathy.parts import Part

__all__ = ["Part", "Spec"]


class Spec(Part):
    """What a stage is. Subclasses name their `kind` and `revision`."""

    kind: ClassVar[str]
    revision: ClassVar[int] = 1
