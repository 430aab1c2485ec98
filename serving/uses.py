"""Which experiments stand on which paid stages: a note a graph, so that what sharing saved can be told later.

ledger/uses/EXPERIMENT/DIGEST.json    {"experiment": ..., "stages": ["replies/KEY", "verdicts/KEY", ...],
                                       "arms": {"replies/KEY": 12}}
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from empathy.artifact import CorruptError
from empathy.files import Files
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage
from serving.sound import parsed

FOLDER = "ledger/uses"


@dataclass(frozen=True)
class Note:
    """One file. `arms`: how many arms of the experiment need a stage, where that is told and more than one; notes of
    before it was kept have none."""

    experiment: str
    stages: tuple[str, ...]
    arms: dict[str, int] = field(default_factory=dict)


def note(files: Files, experiment: str, stages: Iterable[Stage], arms: Mapping[str, int] | None = None) -> None:
    """Write down the stages among `stages` that a model is paid for, finished or not, and how many `arms` of the
    experiment need each (by the stage's key). Noting them again changes nothing."""
    paid = {f"{s.kind}/{s.key}": arms.get(s.key, 1) if arms else 1 for s in stages if _paid(s)}
    if paid:
        told = Note(experiment, tuple(sorted(paid)), {name: k for name, k in sorted(paid.items()) if k > 1})
        text = json.dumps({name: value for name, value in asdict(told).items() if value}).encode()
        files.put_if_absent(f"{FOLDER}/{experiment}/{hashlib.sha256(text).hexdigest()[:16]}.json", text)


def uses(files: Files, damaged: Callable[[CorruptError], None] | None = None) -> dict[str, dict[str, int]]:
    """Experiment -> "KIND/KEY" of the paid stages it has ever stood on -> how many of its arms need it, at least.

    A damaged note is told to `damaged` and left out: nothing but what sharing saved is reckoned from it. Without it,
    raises CorruptError.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
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
        known = found[told.experiment]
        known |= {name: max(known.get(name, 1), told.arms.get(name, 1)) for name in told.stages}
    return dict(found)


def _paid(stage: Stage) -> bool:
    spec = stage.spec
    return stage.kind == "verdicts" or (isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher))
