"""Who makes which stage: four lanes that run side by side. One entry a lane, in the order in which it is asked
whether a stage is its own.

A lane is a thread, or a thread for each model where models do not share anything. It takes what is ready, makes it, and
tells what became of it (`cluster.work`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from cluster.estimate import Sort
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.quota import RunQuota
from cluster.schedule import Place
from cluster.steps import here
from cluster.work import Needs, Work
from empathy.specs import CheckpointSpec, ExamplesSpec, RepliesSpec, Student, Teacher, VerdictsSpec
from empathy.stages import Stage
from empathy.store import Store
from serving.providers import Provider


@dataclass(frozen=True)
class Context:
    """What every lane gets."""

    store: Store
    profile: Profile
    progress: Progress
    providers: Mapping[str, Provider] = field(default_factory=dict)
    experiment: str = ""
    """Its name: who pays."""
    quota: RunQuota | None = None
    """Paces all calls of the run and caps its dollars; None: no call is slowed down before the first 429."""


Loop = Callable[[Sequence[Place], Work, Context], None]


@dataclass(frozen=True)
class Lane:
    """`model_of` says which model must be up to make a stage ("" when none is), None when it is not this lane's.
    `loop` makes stages of the given places until none can come any more."""

    name: str
    model_of: Callable[[Stage], str | None]
    loop: Loop
    on_ray: Callable[[Context], bool] = lambda context: True
    a_thread_a_model: bool = False

    def thread_of(self, place: Place) -> str:
        """What people call the thread that makes the stages of a place."""
        return f"{self.name} {place.model}" if self.a_thread_a_model else self.name


# ---------------------------------------------------------------- in this process


def _here(places: Sequence[Place], work: Work, context: Context) -> None:
    """One after another: they are small, and this process has one interpreter."""

    def make(stages: Sequence[Stage]) -> None:
        for stage in stages:
            # One CPU: what Ray shards goes on with as few, and with none it would wait for lanes that wait for it.
            sharded = here.is_sharded(stage, context.store, context.profile)
            with work.room("here", Needs(cpus=1)) if sharded else nullcontext():
                here.make(stage, context.store, context.profile, context.progress.units)

    while batch := work.next(places, at_most=1):
        work.make(batch, make)


# ---------------------------------------------------------------- asking


def asked_model(stage: Stage) -> str | None:
    """ "PROVIDER MODEL" of a stage that sends requests to one."""
    if isinstance(stage.spec, VerdictsSpec):
        return f"{stage.spec.judge.provider} {stage.spec.judge.model}"
    if isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher):
        return f"{stage.spec.responder.provider} {stage.spec.responder.model}"
    return None


def _asks_on_ray(context: Context) -> bool:
    """With workers of its own, or where a model of the profile is to be served."""
    return context.profile.ask.workers > 0 or any(p.engine for p in context.profile.providers.values())


def _ask(places: Sequence[Place], work: Work, context: Context) -> None:
    from cluster.steps import asking_lane

    asking_lane.loop(places, work, context)


# ---------------------------------------------------------------- training, generating


def _trained_base(stage: Stage) -> str | None:
    if stage.kind not in ("checkpoint", "logprobs"):
        return None
    from empathy.train.bench import base_of

    return base_of(stage.inputs["checkpoint"] if stage.kind == "logprobs" else stage).key


def _train(places: Sequence[Place], work: Work, context: Context) -> None:
    from cluster.steps import training

    training.loop(places, work, context)


def _engine_of(stage: Stage) -> str | None:
    """What one engine holds: a base with its adapters in one precision, or weights of their own."""
    if not isinstance(stage.spec, RepliesSpec) or not isinstance(stage.spec.responder, Student):
        return None
    from empathy.train.bench import adapter_of, base_of

    checkpoint = stage.inputs["checkpoint"]
    weights = base_of(checkpoint) if adapter_of(checkpoint) else checkpoint
    return f"{weights.key} {stage.spec.responder.precision}"


def _generate(places: Sequence[Place], work: Work, context: Context) -> None:
    from cluster.steps import generating

    generating.loop(places, work, context)


LANES = (
    Lane("here", lambda stage: "" if here.takes(stage) else None, _here, on_ray=lambda context: False),
    Lane("asking", asked_model, _ask, on_ray=_asks_on_ray, a_thread_a_model=True),
    Lane("training", _trained_base, _train),
    Lane("generating", _engine_of, _generate),
)


def place_of(stage: Stage, lanes: Sequence[Lane] = LANES) -> Place:
    """Where a stage is made."""
    for lane in lanes:
        model = lane.model_of(stage)
        if model is not None:
            return Place(lane.name, model)
    raise AssertionError(f"{stage!r}: no lane makes this kind")


def sort_of(stage: Stage, lanes: Sequence[Lane] = LANES) -> Sort:
    """What a stage is to an estimate of time."""
    place = place_of(stage, lanes)
    (lane,) = (lane for lane in lanes if lane.name == place.lane)
    return Sort(lane.thread_of(place), _work_of(stage), place.model)


def _work_of(stage: Stage) -> str:
    """Stages of one kind that take as long as each other: an SFT, a DPO and the raising of a base do not, nor does the
    scoring of a training set and of held-out examples."""
    if isinstance(stage.spec, RepliesSpec):
        return f"{stage.spec.responder.type} replies"
    if isinstance(stage.spec, CheckpointSpec):
        objective = stage.spec.objective.type if stage.spec.objective else "found"
        return f"checkpoints ({'raised' if stage.spec.objective and stage.spec.base else objective})"
    examples = stage.inputs["examples"].spec if stage.kind == "logprobs" and "examples" in stage.inputs else None
    return f"logprobs ({examples.purpose} {examples.objective})" if isinstance(examples, ExamplesSpec) else stage.kind


__all__ = ["LANES", "Context", "Lane", "Needs", "Place", "Work", "place_of", "sort_of"]
