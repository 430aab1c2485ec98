"""What each arm of a grid would need as an experiment of its own, and so how many arms share a stage."""

from __future__ import annotations

from collections import Counter, defaultdict

from empathy.lower import Cell, Lowered
from empathy.stages import Stage, walk


def users(lowered: Lowered) -> Counter[str]:
    """Key of a stage -> the number of arms that would need it if each were an experiment of its own. Verdicts between
    two arms are nobody's; each arm has a report."""
    index = Index(lowered)
    return Counter(key for cell in lowered.cells for key in of_arm(lowered, cell, index))


class Index:
    """The report's inputs by slot. `common` is what bases, people and teachers are measured on, each filed under the
    rarest of the stages that it is about (an arm looks at few of thousands); `bases` are the answers of each student's
    base."""

    def __init__(self, lowered: Lowered):
        inputs = lowered.report.inputs
        self.slots: dict[str, list[Stage]] = {cell.slot: [] for cell in lowered.cells}
        common: list[Stage] = []
        for name, stage in inputs.items():
            slot = name.partition(":")[0]
            if slot in self.slots:
                self.slots[slot].append(stage)
            elif stage.kind in ("logprobs", "verdicts"):
                common.append(stage)
        often = Counter(key for stage in common for key in _about(stage))
        self.common: dict[str, list[Stage]] = defaultdict(list)
        for stage in common:
            self.common[min(_about(stage), key=often.__getitem__)].append(stage)
        self.replies = {cell.replies.key for cell in lowered.cells}
        self.human = inputs["human:replies"]
        self.bases = {student: inputs[f"base{k}:replies"] for k, student in enumerate(lowered.bases)}


def of_arm(lowered: Lowered, cell: Cell, index: Index) -> set[str]:
    """Keys of the stages of an experiment that has this arm alone: its own, its base's answers, what those and its
    teacher are measured on, and a report."""
    mine, others = cell.replies.key, index.replies
    own = [s for s in index.slots[cell.slot] if not any(i.key in others and i.key != mine for i in s.inputs.values())]
    needed = {stage.key for stage in walk([*own, index.human, index.bases[cell.student]])}
    sides = [index.human, index.bases[cell.student], cell.lesson.learned]
    compared = {side.key for side in sides if side}  # not what this arm's replies were pooled or improved from
    near = [s for key in compared | needed for s in index.common.get(key, ())]
    common = {s.key for s in near if _about(s) <= (compared if s.kind == "verdicts" else needed)}
    return needed | common | {lowered.report.key}


def _about(measured: Stage) -> set[str]:
    """Keys of what is measured: a checkpoint on a set of examples, or one or two sets of replies."""
    return {stage.key for name, stage in measured.inputs.items() if name != "dialogues"}
