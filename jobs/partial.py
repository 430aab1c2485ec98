"""A report of the arms that are there while others lack something: another artifact than the report of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from empathy.experiment import Experiment
from empathy.lower import Lowered
from empathy.report.cells import Cells, Responder, name_of
from empathy.stages import Stage, missing
from jobs import choose

Lacking = dict[str, list[Stage]]
"""The stages that an arm still needs, inputs first, by its slot."""


@dataclass(frozen=True)
class Partial:
    """`lowered` is the graph of the arms that lack nothing; `lacking` and `names` are of the whole, with the others."""

    lowered: Lowered
    lacking: Lacking
    names: Mapping[str, str]

    def left_out(self, why: Mapping[str, str]) -> list[tuple[str, list[str]]]:
        """Each reason, and the arms that it (and what else they lack) keeps out of the report. `why` are those that a
        run has found, by the key of the stage that failed."""
        found: dict[str, list[str]] = {}
        for slot, stages in self.lacking.items():
            keys = {stage.key for stage in stages}
            first = [s for s in stages if not any(needed.key in keys for needed in s.inputs.values())]
            root = next((s for s in first if s.key in why), first[0])
            reason = f"{root.kind}/{root.key[:8]} {root.label}: {why.get(root.key, 'not made')}"
            found.setdefault(reason, []).append(name_of(slot, self.names))
        return list(found.items())


def partial(x: Experiment, lowered: Lowered, only: Sequence[str], done: Callable[[Stage], bool]) -> Partial | None:
    """What can be reported of `lowered` (of `x` and `only`), some of whose arms lack something; None when all do."""
    lacking = _lacking(Cells(lowered.report), done)
    out = {cell.name for cell in lowered.cells if cell.slot in lacking}
    if len(out) == len(lowered.cells):
        return None
    return Partial(choose.lowered(x, only, without=out), lacking, lowered.report.locator)


def _lacking(cells: Cells, done: Callable[[Stage], bool]) -> Lacking:
    found: Lacking = {}
    for arm in cells.arms:
        if left := missing(_alone(cells, arm), done):
            found[arm.slot] = left
    there = {arm.slot: arm for arm in cells.arms if arm.slot not in found}
    for arm in there.values():  # verdicts against an arm that is left out are left out with it, and lack nobody
        against = [judged.stage for judged in arm.verdicts if judged.opponent in there]
        if left := missing(against, done):
            found[arm.slot] = left
    return found


def _alone(cells: Cells, arm: Responder) -> Iterator[Stage]:
    """The inputs of the report that it would have of this arm alone."""
    base, lessons = cells.base_of(arm), set(arm.nll) | set(arm.pairs)
    assert base, f"{arm.slot} has no base in its report"
    others = {r.slot: r for r in cells.others if r.slot == "human" or r in cells.teachers_of(arm)}
    yield cells.dialogues
    yield from (stage for (_, lesson), stage in cells.heldout.items() if lesson in lessons)
    for who in (arm, base, *others.values()):
        yield from (stage for stage in (who.checkpoint, who.replies, who.scores) if stage)
        yield from (stage for lesson, stage in [*who.nll.items(), *who.pairs.items()] if lesson in lessons)
        yield from (v.stage for v in who.verdicts if v.opponent in others or v.opponent == base.slot)
