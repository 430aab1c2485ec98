"""Which experiments stand on which paid stages: a note a graph, so that what sharing saved can be told later.

ledger/uses/EXPERIMENT/DIGEST.json    {"experiment": ..., "stages": ["replies/KEY", "verdicts/KEY", ...]}
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable

from empathy.files import Files
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage

FOLDER = "ledger/uses"


def note(files: Files, experiment: str, stages: Iterable[Stage]) -> None:
    """Write down the stages among `stages` that a model is paid for, finished or not. Noting them again changes
    nothing."""
    paid = sorted(f"{s.kind}/{s.key}" for s in stages if _paid(s))
    if paid:
        text = json.dumps({"experiment": experiment, "stages": paid}).encode()
        files.put_if_absent(f"{FOLDER}/{experiment}/{hashlib.sha256(text).hexdigest()[:16]}.json", text)


def uses(files: Files) -> dict[str, set[str]]:
    """Experiment -> "KIND/KEY" of the paid stages it has ever stood on."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in files.read_many(files.list(FOLDER, recursive=True)):
        if text is not None:
            told = json.loads(text)
            found[told["experiment"]] |= set(told["stages"])
    return dict(found)


def _paid(stage: Stage) -> bool:
    spec = stage.spec
    return stage.kind == "verdicts" or (isinstance(spec, RepliesSpec) and isinstance(spec.responder, Teacher))
