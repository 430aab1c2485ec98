"""Chat templates (Jinja) that ship with the package: a base student that brings none is given one, and keeps it
everywhere.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from empathy.words import instead


def names() -> list[str]:
    """The templates that ship."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".jinja") for f in files if f.name.endswith(".jinja"))


def load(name_or_path: str) -> str:
    """The text of a template: one of `names()`, or a path that ends in .jinja. Raises ValueError when there is none."""
    if name_or_path in names():
        return (resources.files(__name__) / f"{name_or_path}.jinja").read_text(encoding="utf-8")
    path = Path(name_or_path).expanduser()
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text(encoding="utf-8")
    known = instead(name_or_path, names())
    raise ValueError(f"template = {name_or_path!r}: no such template{known}, or give the path of a .jinja file")
