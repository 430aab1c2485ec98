"""What every spec is made of."""

from __future__ import annotations

from typing import ClassVar

from empathy.parts import Part

__all__ = ["Part", "Spec"]


class Spec(Part):
    """What a stage is. Subclasses name their `kind` and, from the second on, their `revision`."""

    kind: ClassVar[str]

    @property
    def revision(self) -> int:
        """Raised by hand when a change of code changes what the stage makes; part of the key."""
        return 1
