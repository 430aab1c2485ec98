"""Stages: a typed spec, the stages it stands on, and a key that is a hash of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from empathy.specs import Spec


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value. Raises ValueError for NaN, TypeError for foreign types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work that is done once.

    `locator` says where things are found now (paths of sources, display names): it helps to make the stage and is no part of
    what the stage is. `label` is what progress lines call it.
    """

    spec: Spec
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    locator: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def kind(self) -> str:
        return self.spec.kind

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is a hash of."""
        return {
            "kind": self.spec.kind,
            "revision": self.spec.revision,
            "spec": self.spec.model_dump(mode="json"),
            "inputs": {name: stage.key for name, stage in sorted(self.inputs.items())},
        }

    @cached_property
    def key(self) -> str:
        """32 hex digits, equal in every process for equal kind, revision, spec and inputs."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.kind}/{self.key[:8]} {self.label}".strip()


def walk(targets: Iterable[Stage], descend: Callable[[Stage], bool] = lambda stage: True) -> Iterator[Stage]:
    """Each distinct stage once, inputs before users. `descend(stage)` False leaves out a stage and what only it needs."""
    seen: set[str] = set()
    for target in targets:
        stack: list[tuple[Stage, bool]] = [(target, False)]
        while stack:
            stage, ready = stack.pop()
            if ready:
                yield stage
            elif stage.key not in seen:
                seen.add(stage.key)
                if descend(stage):
                    stack.append((stage, True))
                    stack.extend((s, False) for _, s in sorted(stage.inputs.items(), reverse=True))


def missing(targets: Iterable[Stage], done: Callable[[Stage], bool]) -> list[Stage]:
    """The stages still to make, inputs first. A finished stage hides its ancestors."""
    return list(walk(targets, descend=lambda stage: not done(stage)))


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two JSON-like values differ, one line a leaf: "spec.judge.mode: 'robust' here, 'paper' there"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            line
            for n in names
            for line in differences(ours.get(n, "(absent)"), theirs.get(n, "(absent)"), f"{path}.{n}" if path else n)
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} here, {theirs!r} there"]


def nearest(identity: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], list[str]] | None:
    """The identity of the same kind that differs least, with the differences; None when there is no other of this kind."""
    siblings = [o for o in others if o["kind"] == identity["kind"] and canonical(o) != canonical(identity)]
    scored = [(len(diff), canonical(o), o, diff) for o in siblings for diff in [differences(identity, o)]]
    return min(scored, key=lambda s: s[:2])[2:] if scored else None
