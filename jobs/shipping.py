"""Local files that an experiment names, put into the folder that a cluster is sent, and named there.

A source, a folder of prompts and a template are shipped where they are small. What is not shipped must be at the same
path on every machine: a model, what is too large, and what a variable places that is sent along. The run on the cluster
looks for all of it before anybody is asked.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathy import templates

MAX_MIB = 50
"""Of all files together."""
FOLDER = "files"


@dataclass(frozen=True)
class Named:
    """A file or folder of this machine that the experiment names: `value`, as written in `field`."""

    field: tuple[str, ...]
    value: str
    path: Path

    @property
    def is_model(self) -> bool:
        return self.field[-1] == "model"

    @property
    def mib(self) -> float:
        files = [self.path] if self.path.is_file() else [p for p in self.path.rglob("*") if p.is_file()]
        return sum(p.stat().st_size for p in files) / 2**20

    def __str__(self) -> str:
        return f"{'.'.join(self.field)} = {self.value!r}"


def ship(file: Path, target: Path, placed: Collection[str] = ()) -> list[str]:
    """Copy what `file` names into `target`, and write the experiment there with the paths that it has there. What is
    left out, one line each. `placed` are variables that are sent along: what they place is there already.

    Raises ValueError for what is neither shipped nor named by an absolute path.
    """
    text = file.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    shipped, left = _sorted_out([named for named in _named(document) if not _is_placed(named.value, placed)])
    for named in left:
        if not Path(named.value).expanduser().is_absolute():
            raise ValueError(
                f"{named}: {_why(named)}, and this path is relative: put it where every machine of the cluster reaches "
                "it, and give that path from / on"
            )
    there = {named.value: f"{FOLDER}/{k}/{named.path.name}" for k, named in enumerate(shipped)}
    for named in shipped:
        _copy(named.path, target / there[named.value])
    (target / file.name).write_text(_renamed(text, document, shipped, there), encoding="utf-8")
    return [f"{named}: {_why(named)}; it must be at this path on every machine of the cluster" for named in left]


def _named(document: Mapping[str, Any]) -> Iterator[Named]:
    """What is there on this machine; a path that is not may be right on the cluster."""
    fields: list[tuple[str, ...]] = [("data", "source", "path"), ("teacher", "prompts")]
    for student in document.get("students", {}):
        of = ("students", student)
        fields += [(*of, "raise", "source", "path"), (*of, "template"), (*of, "model")]
    for field in fields:
        value = _at(document, field)
        if not isinstance(value, str) or (field[-1] == "template" and value in (*templates.names(), "own")):
            continue
        path = Path(os.path.expandvars(value)).expanduser().absolute()
        if path.exists():
            yield Named(field, value, path)


def _at(document: Any, field: tuple[str, ...]) -> Any:
    for name in field:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _is_placed(value: str, variables: Collection[str]) -> bool:
    used = re.findall(r"\$\{(\w+)\}", value)
    return bool(used) and set(used) <= set(variables)


def _sorted_out(found: list[Named]) -> tuple[list[Named], list[Named]]:
    """What is shipped, the small ones first, and what is left."""
    shipped: list[Named] = []
    left = [named for named in found if named.is_model]
    room = float(MAX_MIB)
    for named in sorted((n for n in found if not n.is_model), key=lambda n: n.mib):
        again = any(named.path == other.path for other in shipped)
        room -= 0 if again else named.mib
        (shipped if room >= 0 else left).append(named)
    return shipped, left


def _why(named: Named) -> str:
    return (
        "a model is not shipped" if named.is_model else f"{named.mib:,.0f} MiB are not shipped ({MAX_MIB} in all are)"
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def _renamed(text: str, document: dict[str, Any], shipped: list[Named], there: Mapping[str, str]) -> str:
    """The experiment with other paths, and else as it was. Raises ValueError where its text cannot be changed so."""
    wanted = copy.deepcopy(document)
    for named in shipped:
        _at(wanted, named.field[:-1])[named.field[-1]] = there[named.value]
        for written in (json.dumps(named.value, ensure_ascii=False), f"'{named.value}'"):
            text = text.replace(written, json.dumps(there[named.value], ensure_ascii=False))
    if tomllib.loads(text) != wanted:
        names = ", ".join(map(str, shipped))
        raise ValueError(
            f"{names}: cannot be replaced in the file; write each path in plain quotes, and nothing else so"
        )
    return text
