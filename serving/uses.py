"""Which experiments stand on which paid stages: a note a graph, so that what sharing saved can be told later.

ledger/uses/EXPERIMENT/DIGEST.json    {"experiment": ..., "stages": ["replies/KEY", "verdicts/KEY", ...]}
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from empathy.artifact import CorruptError
from empathy.files import Files
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage
from serving.sound import parsed

FOLDER = "ledger/uses"


@dataclass(frozen=True)
class Note:
    """One file."""

    experiment: str
    stages: tuple[str, ...]


def note(files: Files, experiment: str, stages: Iterable[Stage]) -> None:
    """Write down the stages among `stages` that a model is paid for, finished or not. Noting them again changes
    nothing."""
    paid = sorted(f"{s.kind}/{s.key}" for s in stages if _paid(s))
    if paid:
        text = json.dumps({"experiment": experiment, "stages": paid}).encode()
        files.put_if_absent(f"{FOLDER}/{experiment}/{hashlib.sha256(text).hexdigest()[:16]}.json", text)


def uses(files: Files, damaged: Callable[[CorruptError], None] | None = None) -> dict[str, set[str]]:
    """Experiment -> "KIND/KEY" of the paid stages it has ever stood on.

    A damaged note is told to `damaged` and left out: nothing but what sharing saved is reckoned from it. Without it,
    raises CorruptError.
    """
    found: dict[str, set[str]] = defaultdict(set)
    paths = list(files.list(FOLDER, recursive=True))
    for path, text in zip(paths, files.read_many(paths), strict=True):
        if text is None:
            continue
        try:
            told = parsed(Note, text, files, path, "delete it; the experiment's next run writes it anew")
        except CorruptError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        found[told.experiment] |= set(told.stages)
    return dict(found)


def _paid(stage: Stage) -> bool:
    spec = stage.spec
    return stage.kind == "verdicts" or (isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher))
