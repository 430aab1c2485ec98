"""The asking lane of one model: whatever is ready for it goes through its workers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster import providers
from cluster.profile import Profile
from cluster.schedule import Place
from cluster.steps.asking import Job, ask_all
from cluster.work import Needs, Work
from empathy import judges, replies
from empathy.records import Reply
from empathy.specs import RepliesSpec, VerdictsSpec
from empathy.stages import Stage
from empathy.store import Store

if TYPE_CHECKING:
    from cluster.executors import Context

AT_ONCE = 64
"""Stages that go through one set of workers together."""


def loop(places: Sequence[Place], work: Work, context: Context) -> None:
    """Make stages of one model until none can come any more."""
    (place,) = places
    while batch := work.next(places, AT_ONCE):
        with work.room(f"asking {place.model}", _needs(batch, context.profile)):
            context.progress.working(batch, f"asking {place.model}")
            try:
                work.make(batch, lambda stages: _ask(stages, work, context))
            finally:  # a model of our own leaves its room to others
                providers.release(context.providers, batch)


def _needs(stages: Sequence[Stage], profile: Profile) -> Needs:
    """The workers that ask, and what a model of our own answers with."""
    engine, own = profile.engine, any(providers.is_own(name, profile) for name in providers.models(stages))
    replicas = engine.replicas if own else 0
    return Needs(profile.ask.workers + replicas, replicas * engine.gpus)


def _ask(stages: Sequence[Stage], work: Work, context: Context) -> None:
    try:
        ask_all(
            [job(stage, context.store) for stage in stages],
            context.store,
            {name: context.providers[name] for name in providers.models(stages)},
            context.profile.ask.workers,
            context.profile.ask.in_flight,
            context.progress.units,
            context.experiment,
            work.done,
            say=context.progress.say,
            quota=context.quota and context.quota.ask(),
        )
    finally:
        if context.quota is not None:
            context.quota.look()


def job(stage: Stage, store: Store) -> Job:
    """What is to be asked for a stage, with the number of dialogues of its split in each part."""
    spec = stage.spec
    assert isinstance(spec, RepliesSpec | VerdictsSpec)
    parts = store.get(stage.inputs["dialogues"]).parts
    dialogues = tuple(part.counts.get(spec.split, 0) if spec.split else part.rows or 0 for part in parts)
    if isinstance(spec, VerdictsSpec):
        return Job(stage, judges.record_of(stage), judges.askings, dialogues)
    return Job(stage, Reply, replies.askings, dialogues)
