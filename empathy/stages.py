"""Stages: a typed spec, the stages it stands on, and a key that is a hash of both."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from empathy.specs import KINDS, Spec

ABSENT = "(absent)"


class LastingError(ValueError):
    """A stage cannot be made of what its inputs are: it fails the same way whenever it is tried."""


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces: one text for one value. ValueError for NaN, TypeError for foreign types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_of(identity: Mapping[str, Any]) -> str:
    """The key of an identity: 32 hex digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:32]


def plain(value: Any, path: str) -> Any:
    """`value` as JSON holds it. Raises ValueError naming `path` for what has no one text: a set, an object, NaN."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value + 0.0  # -0.0 == 0.0, so they are one key
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item, f"{path}.{name}") for name, item in value.items()}
    raise ValueError(
        f"{path} = {value!r}: a {type(value).__name__} has no one text to make a key of; use strings, finite numbers, "
        "booleans, lists and tables with string names"
    )


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work that is done once.

    `locator` says where things are found now (paths of sources, display names): it helps to make the stage and is no
    part of what the stage is. `label` is what progress lines call it.
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
        """What the key is a hash of. Raises ValueError for a spec that holds what cannot be written in one way."""
        return {
            "kind": self.spec.kind,
            "revision": self.spec.revision,
            "spec": plain(self.spec.model_dump(), "spec"),
            "inputs": {name: stage.key for name, stage in sorted(self.inputs.items())},
        }

    @cached_property
    def key(self) -> str:
        """32 hex digits, equal in every process for equal kind, revision, spec and inputs."""
        return key_of(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.kind}/{self.key[:8]} {self.label}".strip()


def walk(targets: Iterable[Stage], descend: Callable[[Stage], bool] = lambda stage: True) -> Iterator[Stage]:
    """Each distinct stage once, inputs before users. `descend(stage)` False leaves it and what only it needs out."""
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


# ---------------------------------------------------------------- as text, for other processes


def to_json(stages: Iterable[Stage]) -> str:
    """A graph as text: every distinct stage once, inputs first, and which of them were given."""
    targets = list(stages)
    nodes = [
        {
            "key": stage.key,
            "kind": stage.kind,
            "spec": stage.identity["spec"],
            "inputs": stage.identity["inputs"],
            "locator": dict(stage.locator),
            "label": stage.label,
        }
        for stage in walk(targets)
    ]
    return canonical({"stages": nodes, "targets": [target.key for target in targets]})


def from_json(text: str) -> list[Stage]:
    """The stages that `to_json` was given; inputs that were shared are one object.

    Raises ValueError when a stage has another key here: the two processes run different code.
    """
    graph = json.loads(text)
    made: dict[str, Stage] = {}
    for node in graph["stages"]:
        inputs = {name: made[key] for name, key in node["inputs"].items()}
        stage = Stage(KINDS[node["kind"]].model_validate(node["spec"]), inputs, node["locator"], node["label"])
        if stage.key != node["key"]:
            raise ValueError(
                f"stage {node['kind']}/{node['key']} ({node['label']}) has key {stage.key} here: its writer runs "
                "another version of the code; install the same on every machine"
            )
        made[stage.key] = stage
    return [made[key] for key in graph["targets"]]


# ---------------------------------------------------------------- why two keys differ


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two JSON-like values differ, one line a leaf: "spec.judge.mode: 'robust' here, 'paper' there"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            line
            for n in names
            for line in differences(ours.get(n, ABSENT), theirs.get(n, ABSENT), f"{path}.{n}" if path else n)
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for k, (a, b) in pairs for line in differences(a, b, f"{path}[{k}]")]
    return [] if ours == theirs else [f"{path}: {_shown(ours, theirs)} here, {_shown(theirs, ours)} there"]


def _shown(value: Any, other: Any, width: int = 60) -> str:
    """`value`, a long text (a prompt) by its first words that differ from `other`."""
    if value == ABSENT:
        return ABSENT
    if not isinstance(value, str) or not isinstance(other, str) or len(value) <= width:
        return repr(value)
    common = next(
        (k for k, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), min(len(value), len(other))
    )
    start = max(0, common - width // 3)
    return ("..." if start else "") + repr(value[start : start + width]) + ("..." if start + width < len(value) else "")


def nearest(
    identity: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], list[str]] | None:
    """The identity of the same kind that differs least, with the differences; None without another of its kind."""
    siblings = [o for o in others if o["kind"] == identity["kind"] and canonical(o) != canonical(identity)]
    scored = [(len(diff), canonical(o), o, diff) for o in siblings for diff in [differences(identity, o)]]
    return min(scored, key=lambda s: s[:2])[2:] if scored else None


def root_differences(ours: str, theirs: str, identities: Mapping[str, Mapping[str, Any]], path: str = "") -> list[str]:
    """Why two keys differ, down to the settings: an input that differs is followed to what differs in it.

    `identities` maps keys to identities (of the planned graph and of the store together). An input that it lacks stays
    a line of two keys; one that several inputs of a stage share is told once.
    """
    if ours not in identities or theirs not in identities:
        return [f"{path}: {ours} here, {theirs} there"]
    mine, other = identities[ours], identities[theirs]
    lines = [f"{path}: {line}" if path else line for line in differences(_own(mine), _own(other))]
    followed: set[tuple[str, str]] = set()
    for name in sorted(mine["inputs"].keys() | other["inputs"].keys()):
        pair = (mine["inputs"].get(name, ABSENT), other["inputs"].get(name, ABSENT))
        if pair[0] != pair[1] and pair not in followed:
            followed.add(pair)
            lines += root_differences(*pair, identities, f"{path} > {name}" if path else name)
    return lines


def _own(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "inputs"}
