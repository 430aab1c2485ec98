"""The inputs of a report stage as arms, bases and opponents: the one place that knows how `empathy.lower` names them.

    dialogues
    SLOT:scores                                                                     a rubric's, if it is asked
    a000:checkpoint   a000:replies   a000:nll:J   a000:pairs:J   a000:verdicts:OPPONENT[:judgeI]    arms
    base0:checkpoint  base0:replies  base0:nll:J  base0:pairs:J                                     bases
    human:replies     teacher:J:replies                                                             other opponents
    heldout:sft:J     heldout:dpo:J                                                 held-out sets of lesson J

Estimates name arms by slot, because names are no part of a stage: `name_of` says what people call a slot.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from empathy.records import Split
from empathy.specs import Judge, VerdictsSpec
from empathy.stages import Stage

_INPUT = re.compile(
    r"(?P<slot>a\d+|base\d+|human|teacher:\d+)"
    r":(?:(?P<what>checkpoint|replies|scores)|(?P<score>nll|pairs):(?P<j>\d+)|verdicts:(?P<opponent>.+?)(?::judge\d+)?)"
)
FACTOR = re.compile(r"(\w+)=(.*?)(?=\s+\w+=|$)")

NAMED = ("seed", "both_replies", "rejected", "original", "division")
"""Factors whose values say nothing without their name."""


@dataclass(frozen=True)
class Judged:
    """Verdicts of one judge on an arm and an opponent (a slot)."""

    opponent: str
    stage: Stage

    @property
    def judge(self) -> Judge:
        judge = cast(VerdictsSpec, self.stage.spec).judge
        assert isinstance(judge, Judge), f"{self.stage!r} compares nothing"
        return judge


@dataclass
class Responder:
    """Somebody whose replies the report is about: an arm, a base, the people in the data, a teacher."""

    slot: str
    checkpoint: Stage | None = None
    replies: Stage | None = None
    scores: Stage | None = None
    """What a rubric's judge gives to each reply."""
    nll: dict[str, Stage] = field(default_factory=dict)
    """Log-probabilities of held-out demonstrations, by lesson."""
    pairs: dict[str, Stage] = field(default_factory=dict)
    """Log-probabilities of held-out preferences, by lesson."""
    verdicts: list[Judged] = field(default_factory=list)

    @property
    def is_arm(self) -> bool:
        return self.slot.startswith("a")

    @property
    def is_base(self) -> bool:
        return self.slot.startswith("base")


class Cells:
    """A report stage, read."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.names: Mapping[str, str] = stage.locator
        self.dialogues = stage.inputs["dialogues"]
        self.heldout: dict[tuple[str, str], Stage] = {}
        """(objective, lesson) -> held-out examples."""
        self.responders: dict[str, Responder] = {}
        for name, value in stage.inputs.items():
            self._take(name, value)

    def _take(self, name: str, stage: Stage) -> None:
        if name == "dialogues":
            return
        if name.startswith("heldout:"):
            _, objective, lesson = name.split(":")
            self.heldout[objective, lesson] = stage
            return
        match = _INPUT.fullmatch(name)
        assert match, f"a report has no input {name!r}"
        responder = self.responders.setdefault(match["slot"], Responder(match["slot"]))
        if match["opponent"]:
            responder.verdicts.append(Judged(match["opponent"], stage))
        elif match["score"]:
            getattr(responder, match["score"])[match["j"]] = stage
        else:
            setattr(responder, match["what"], stage)

    @property
    def arms(self) -> list[Responder]:
        return [r for _, r in sorted(self.responders.items()) if r.is_arm]

    @property
    def bases(self) -> list[Responder]:
        return [r for _, r in sorted(self.responders.items()) if r.is_base]

    @property
    def others(self) -> list[Responder]:
        """People and teachers."""
        return [r for _, r in sorted(self.responders.items()) if not r.is_arm and not r.is_base]

    @cached_property
    def _by_checkpoint(self) -> dict[str, Responder]:
        return {r.checkpoint.key: r for r in self.responders.values() if r.checkpoint}

    def base_of(self, arm: Responder) -> Responder | None:
        """The base that the arm was tuned from, if the report holds it."""
        assert arm.checkpoint
        base = arm.checkpoint.inputs.get("base")
        return self._by_checkpoint.get(base.key) if base else None

    def start_of(self, arm: Responder) -> Responder | None:
        """What the arm's last step of training started from (and DPO's reference): the SFT arm, or the base."""
        assert arm.checkpoint
        policy = arm.checkpoint.inputs.get("policy")
        return self._by_checkpoint.get(policy.key) if policy else self.base_of(arm)

    def teachers_of(self, responder: Responder) -> list[Responder]:
        """The teachers whose replies it learned (an arm), or all teachers (a base)."""
        lessons = set(responder.nll) | set(responder.pairs)
        return [r for r in self.others if r.slot.startswith("teacher:") and r.slot.split(":")[1] in lessons]

    @cached_property
    def split(self) -> Split:
        """The side of the split that replies were judged on."""
        found = {cast(VerdictsSpec, v.stage.spec).split for arm in self.arms for v in arm.verdicts} or {"test"}
        assert len(found) == 1, f"verdicts on several splits: {found}"
        side = found.pop()
        assert isinstance(side, str), "verdicts on several sides of the split at once"
        return side

    @cached_property
    def cap_words(self) -> int:
        """Where replies were capped before judging."""
        found = {cast(VerdictsSpec, v.stage.spec).cap_words for arm in self.arms for v in arm.verdicts}
        assert len(found) <= 1, f"replies capped differently: {found}"
        return found.pop() if found else VerdictsSpec.model_fields["cap_words"].default

    def factors(self, slot: str) -> dict[str, str]:
        """student, regime, method, teacher, strategy, seed of an arm, as far as it has them."""
        return dict(FACTOR.findall(self.names.get(slot, "")))


def told(names: Mapping[str, str]) -> set[str]:
    """The factors that names tell: regime, method and strategy, and whatever else differs between arms."""
    arms = [dict(FACTOR.findall(text)) for slot, text in names.items() if re.fullmatch(r"a\d+", slot)]
    keys = {k for arm in arms for k in arm}
    differing = {k for k in keys if len({arm.get(k) for arm in arms}) > 1}
    return differing | {"regime", "method", "strategy"} if len(arms) > 1 else keys - {"seed"}


def name_of(slot: str, names: Mapping[str, str], factors: Collection[str] | None = None) -> str:
    """What people call a slot; `names` is the report stage's locator, `factors` what `told` says of it. What all arms
    share goes without saying."""
    if slot == "human":
        return "human reply"
    if slot.startswith("teacher:"):
        return f"teacher's reply ({name_of(slot.split(':')[1], names, factors)})"
    return in_short(names.get(slot, slot), told(names) if factors is None else factors)


def in_short(text: str, factors: Collection[str]) -> str:
    """The values of those `factors` in a name ("regime=sft method=direct seed=0"); a name without any stays."""
    values = [(k, v) for k, v in FACTOR.findall(text) if k in factors]
    return " ".join(f"{k.replace('_', ' ')} {v}" if k in NAMED else v for k, v in values) or text
