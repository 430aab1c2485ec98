"""Which part of an experiment is meant: `--only PATTERN` chooses arms, `--until KIND` how far they are made."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence

from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.specs import RepliesSpec, Student
from empathy.stages import Stage, walk
from empathy.words import instead

UNTIL = ("dialogues", "replies", "examples", "checkpoint", "logprobs", "verdicts")
"""Where a run may stop. "replies" are those of teachers and of the data: what students answer comes with "verdicts"."""


def check_until(until: str | None) -> None:
    """Raises ValueError for a kind that a run cannot stop at."""
    if until is not None and "/" not in until and until not in UNTIL:
        raise ValueError(
            f"--until {until}: no such kind to stop at{instead(until, UNTIL)}, and KIND/KEY is one stage alone"
        )


def check_max_usd(max_usd: float | None) -> None:
    """Raises ValueError for an amount that cannot be spent."""
    if max_usd is not None and not 0 <= max_usd < float("inf"):
        raise ValueError(f"--max-usd {max_usd}: must be an amount of US dollars, 0 or more")


def lowered(x: Experiment, only: Sequence[str] = (), without: Collection[str] = ()) -> Lowered:
    """The experiment's graph, or that of the arms which match one of the patterns, less those of the names `without`.
    Raises ValueError when none does."""
    return lower(x, tuple(only), without)


def targets(graph: Lowered, until: str | None = None, file: str = "FILE") -> list[Stage]:
    """What is to be finished: the report, all stages of a kind, or the one whose KIND/KEY begins so. What those stand
    on is made too, as far as missing: a DPO checkpoint needs the log-probabilities of its reference."""
    check_until(until)
    if until is None:
        return [graph.report]
    if "/" in until:
        return _one(graph, until, file)
    return [s for s in walk([graph.report]) if s.kind == until and not _by_student(s)]


def _one(graph: Lowered, name: str, file: str) -> list[Stage]:
    found = [s for s in walk([graph.report]) if f"{s.kind}/{s.key}".startswith(name)]
    if len(found) != 1:
        command = f"empathy plan {shlex.quote(file)} --all"
        raise ValueError(f"--until {name}: {len(found) or 'no'} stages begin so; `{command}` lists them")
    return found


def _by_student(stage: Stage) -> bool:
    return isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Student)
