"""Estimates, looked up and put into words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from empathy.records import Estimate
from empathy.report.cells import FACTOR, in_short, name_of, told

UNKNOWN = "–"


class Valued(Protocol):
    """A value with its interval: an `Estimate`, an `Interval`."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def percent(e: Valued | None, signed: bool = False) -> str:
    """A share as "61.2 % [55.0, 67.1]"; a dash where it is unknown."""
    return _worded(e, 100, 1, signed, " %")


def number(e: Valued | None, digits: int = 2, signed: bool = False) -> str:
    """A value as "2.31 [2.20, 2.42]"; a dash where it is unknown."""
    return _worded(e, 1, digits, signed, "")


def _worded(e: Valued | None, scale: float, digits: int, signed: bool, unit: str) -> str:
    if e is None or e.value is None:
        return UNKNOWN
    sign = "+" if signed else ""
    text = f"{scale * e.value:{sign}.{digits}f}{unit}"
    if e.low is None or e.high is None or e.low == e.high:  # of no width: all rows say the same, and nothing of others
        return text
    return f"{text} [{scale * e.low:{sign}.{digits}f}, {scale * e.high:{sign}.{digits}f}]"


def opponent_kind(slot: str) -> str:
    """base, human, teacher, or naive: an arm is compared with another one only where that is its naive twin."""
    kind = slot.split(":")[0].rstrip("0123456789")
    return "naive" if kind == "a" else kind


@dataclass(frozen=True)
class Match:
    """One row of the headline table: an arm, an opponent, a judge."""

    arm: str
    opponent: str
    judge: str | None


@dataclass(frozen=True)
class Check:
    """Something the run was meant to show. `holds` is None where the interval leaves it open."""

    claim: str
    holds: bool | None
    detail: str
    key: str


class Book:
    """All estimates of a report; `names` is the locator of its stage (slot -> name)."""

    def __init__(self, estimates: Iterable[Estimate], names: Mapping[str, str]):
        self.all, self.names = list(estimates), names
        self._short: dict[str, str] = {}

    @cached_property
    def _index(self) -> dict[tuple[str, str, str | None, str | None, str | None], Estimate]:
        found: dict[tuple[str, str, str | None, str | None, str | None], Estimate] = {}
        for e in self.all:
            found.setdefault((e.arm, e.measure, e.opponent, e.judge, None), e)
            found[e.arm, e.measure, e.opponent, e.judge, e.note] = e
        return found

    @cached_property
    def _by_measure(self) -> dict[str, list[Estimate]]:
        found: dict[str, list[Estimate]] = {}
        for e in self.all:
            found.setdefault(e.measure, []).append(e)
        return found

    def get(
        self, arm: str, measure: str, opponent: str | None = None, judge: str | None = None, note: str | None = None
    ) -> Estimate | None:
        """The estimate, or None. `note` tells held-out sets apart ("heldout:sft:0")."""
        return self._index.get((arm, measure, opponent, judge, note))

    def of(self, measure: str) -> Iterator[Estimate]:
        """All estimates of one measure, in order."""
        return iter(self._by_measure.get(measure, ()))

    def of_match(self, m: Match, measure: str) -> Estimate | None:
        return self.get(m.arm, measure, m.opponent, m.judge)

    @property
    def likelihoods(self) -> list[Estimate]:
        """NLL per token: lesson by lesson, the base before the arms."""
        return sorted(
            self.of("nll_per_token"), key=lambda e: (int(e.note.split(":")[-1]), not e.arm.startswith("base"), e.arm)
        )

    @property
    def matches(self) -> list[Match]:
        return [Match(e.arm, str(e.opponent), e.judge) for e in self.of("win_rate")]

    @property
    def responders(self) -> list[str]:
        """Slots with text metrics or likelihoods: bases, arms, then people and teachers."""
        slots = dict.fromkeys(e.arm for e in self.all)
        return sorted(slots, key=lambda s: (s[0] in "ht", not s.startswith("base"), s))

    def name(self, slot: str) -> str:
        if slot not in self._short:
            self._short[slot] = name_of(slot, self.names, self._told)
        return self._short[slot]

    @cached_property
    def _told(self) -> set[str]:
        return told(self.names)

    def factors(self, slot: str) -> dict[str, str]:
        return dict(FACTOR.findall(self.names.get(slot, "")))

    def series(self, slot: str) -> str:
        """sft, dpo, sft+dpo, or base: what colours a bar."""
        return "base" if slot.startswith("base") else self.factors(slot).get("regime", "sft")

    def student(self, slot: str) -> str:
        return (
            self.name(slot).removesuffix(" (base)")
            if slot.startswith("base")
            else self.factors(slot).get("student", slot)
        )

    def lesson(self, slot: str) -> str:
        """What an arm was taught: method, teacher, strategy (and seed, when there are several)."""
        return in_short(self.names.get(slot, ""), self._told - {"student", "regime"})

    def lesson_named(self, note: str) -> str:
        """What people call the lesson of a held-out set ("heldout:sft:0"): the values of its factors."""
        return self.name(note.rsplit(":", 1)[-1])

    def base_of(self, arm: str) -> str | None:
        """The base that an arm's rubric scores are compared with."""
        return self._bases.get(arm)

    @cached_property
    def _bases(self) -> dict[str, str | None]:
        return {e.arm: e.opponent for e in self.of("rubric_less_base")}

    def less_base(self, e: Estimate) -> Estimate | None:
        """NLL per token less the base's, of an arm's `nll_per_token`."""
        return self._less_base.get((e.arm, e.note))

    @cached_property
    def _less_base(self) -> dict[tuple[str, str], Estimate]:
        return {(e.arm, e.note): e for e in self.of("nll_difference")}

    # ---- what the run was meant to show

    def checks(self) -> list[Check]:
        """SFT lowers the held-out NLL of what it learned; DPO raises preference accuracy over its starting point."""
        lower = [self._check(e, "lowers held-out NLL per token against", -1) for e in self.of("nll_difference")]
        raised = [
            self._check(e, f"raises held-out preference accuracy ({kind.replace('_', ' ')}) over", +1)
            for kind in ("summed", "per_token", "over_base")
            for e in self.of(f"preference_accuracy_gain_{kind}")
        ]
        return [c for c in lower if c] + [c for c in raised if c]

    def _check(self, e: Estimate, claim: str, sign: int) -> Check | None:
        regime = self.series(e.arm)
        if e.value is None or (regime != "sft" if sign < 0 else "dpo" not in regime):
            return None
        worst, best = (e.high, e.low) if sign < 0 else (e.low, e.high)
        wrong = best is not None and best * sign < 0
        holds = True if worst is not None and worst * sign > 0 else False if wrong else None
        detail = number(e, 3, signed=True) + " nats per token"
        if sign > 0:
            before = self.get(str(e.opponent), e.measure.replace("accuracy_gain", "accuracy"), note=e.note)
            detail = percent(e, signed=True).replace(" %", " points")
            if before and before.value is not None:
                detail += f", from {100 * before.value:.1f} %"
                holds = None if before.value == 1 and e.value == 0 else holds  # nothing was left to raise
        return Check(f"{self.name(e.arm)} {claim} {self.name(str(e.opponent))}", holds, detail, e.key)
