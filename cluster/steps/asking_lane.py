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
from empathy.specs.sides import rows_on
from empathy.stages import Stage
from empathy.store import Store

if TYPE_CHECKING:
    from cluster.executors import Context

AT_ONCE = 64
"""Stages that go through one set of workers together."""


def loop(places: Sequence[Place], work: Work, context: Context) -> None:
    """Make stages of one model until none can come any more.

    The lane stays up (and with it a model of our own) while more may come, and goes when another one waits for room.
    """
    (place,) = places
    while first := work.next(places, AT_ONCE):
        with work.room(f"asking {place.model}", _needs(first, context.profile)):
            batch = first
            try:
                while batch:
                    context.progress.working(batch, f"asking {place.model}")
                    work.make(batch, lambda stages: _ask(stages, work, context))
                    batch = work.next(places, AT_ONCE, unless=lambda: work.crowded)
            finally:
                providers.release(context.providers, first)


def _needs(stages: Sequence[Stage], profile: Profile) -> Needs:
    """The workers that ask, and what a model of our own answers with."""
    engine, own = profile.engine, any(providers.is_own(name, profile) for name in providers.models(stages))
    replicas = engine.replicas if own else 0
    return Needs(profile.ask.workers + replicas, replicas * engine.gpus)


def _ask(stages: Sequence[Stage], work: Work, context: Context) -> None:
    jobs = {stage.key: job(stage, context.store) for stage in stages}
    try:
        ask_all(
            list(jobs.values()),
            context.store,
            {name: context.providers[name] for name in providers.models(stages)},
            context.profile.ask.workers,
            context.profile.ask.in_flight,
            context.progress.units,
            context.experiment,
            work.done,
            lambda stage, part: _tell(jobs[stage.key], part, context),
            say=context.progress.say,
            quota=context.quota.ask() if context.quota is not None else None,
        )
    finally:
        if context.quota is not None:
            context.quota.look()


def _tell(job: Job, part: int, context: Context) -> None:
    """Requests of batches are told part by part: the quota sees their dollars alone."""
    (name,) = providers.models([job.stage])
    if context.providers[name].batch:
        context.progress.asked(context.store.writer(job.stage).part(part).counts.get("calls", 0))


def job(stage: Stage, store: Store) -> Job:
    """What is to be asked for a stage, with the number of dialogues of its split in each part."""
    spec = stage.spec
    assert isinstance(spec, RepliesSpec | VerdictsSpec)
    parts = store.get(stage.inputs["dialogues"]).parts
    dialogues = tuple(rows_on(spec.split, part.rows or 0, part.counts) for part in parts)
    if isinstance(spec, VerdictsSpec):
        return Job(stage, judges.record_of(stage), judges.askings, dialogues)
    return Job(stage, Reply, replies.askings, dialogues)
