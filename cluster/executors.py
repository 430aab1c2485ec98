"""Who makes which stage, and how many at once. One line an executor; the order is the order in which work is looked
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import providers
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.steps import here
from cluster.steps.asking import Job, ask_all
from empathy import judges, replies
from empathy.records import Reply, Verdict
from empathy.specs import RepliesSpec, Student, Teacher, VerdictsSpec
from empathy.stages import Stage
from empathy.store import Store
from serving.providers import Provider


@dataclass(frozen=True)
class Context:
    """What every executor gets."""

    store: Store
    profile: Profile
    progress: Progress
    providers: Mapping[str, Provider] = field(default_factory=dict)
    experiment: str = ""
    """Its name: who pays."""


Run = Callable[[Sequence[Stage], Context], None]


@dataclass(frozen=True)
class Executor:
    """`takes` says whether a stage is its kind of work; `run` makes a batch, inputs first, each committed to the
    store."""

    name: str
    takes: Callable[[Stage], bool]
    run: Run
    on_ray: bool = True


def _responder(stage: Stage) -> object:
    return stage.spec.responder if isinstance(stage.spec, RepliesSpec) else None


def _make_here(batch: Sequence[Stage], context: Context) -> None:
    for stage in batch:
        here.make(stage, context.store)
        context.progress.finished(stage, context.store.get(stage).counts)


def _job(stage: Stage, store: Store) -> Job:
    dialogues = tuple(part.rows or 0 for part in store.get(stage.inputs["dialogues"]).parts)
    if isinstance(stage.spec, VerdictsSpec):
        return Job(stage, Verdict, judges.askings, dialogues)
    return Job(stage, Reply, replies.askings, dialogues)


def _ask(batch: Sequence[Stage], context: Context) -> None:
    """Wave by wave: replies that improve on replies of the same batch come after them."""
    while batch:
        waiting = {s.key for s in batch}
        wave = [s for s in batch if not any(i.key in waiting for i in s.inputs.values())]
        ask_all(
            [_job(stage, context.store) for stage in wave],
            context.store,
            {name: context.providers[name] for name in providers.models(wave)},
            context.profile.ask.workers,
            context.profile.ask.in_flight,
            context.progress.units,
            context.experiment,
        )
        batch = [s for s in batch if s not in wave]


def _train(batch: Sequence[Stage], context: Context) -> None:
    from cluster.steps import training

    training.run(batch, context)


def _generate(batch: Sequence[Stage], context: Context) -> None:
    from cluster.steps.generating import generate

    cache = Path(context.profile.cache).expanduser()
    generate(batch, context.store, context.profile.engine, cache, context.progress.units)


EXECUTORS = (
    Executor("in this process", here.takes, _make_here, on_ray=False),
    Executor("asking", lambda s: isinstance(s.spec, VerdictsSpec) or isinstance(_responder(s), Teacher), _ask),
    Executor("training and scoring", lambda s: s.kind in ("checkpoint", "logprobs"), _train),
    Executor("generating", lambda s: isinstance(_responder(s), Student), _generate),
)
