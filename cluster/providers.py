"""The providers that a run needs, checked before anything is spent; the embedded one is started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from cluster.profile import EMBEDDED, Profile
from empathy.specs import RepliesSpec, Teacher, VerdictsSpec
from empathy.stages import Stage
from serving.providers import Provider
from serving.scripted import Scripted


def named(stages: Iterable[Stage]) -> list[str]:
    """The providers that making `stages` asks, sorted."""
    found = set()
    for stage in stages:
        if isinstance(stage.spec, VerdictsSpec):
            found.add(stage.spec.judge.provider)
        elif isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher):
            found.add(stage.spec.responder.provider)
    return sorted(found)


def place_of(name: str, profile: Profile) -> Provider:
    """The provider as the profile has it. Raises ValueError when it is unknown or its key is not there."""
    place = profile.provider(name)
    provider = Provider(
        name=name, base_url=place.base_url, key_env=place.key_env, in_flight=place.in_flight, timeout_s=place.timeout_s
    )
    provider.key()
    return provider


@contextmanager
def ready(stages: Iterable[Stage], profile: Profile) -> Iterator[Mapping[str, Provider]]:
    """The providers of `stages` by name; the embedded one lives as long as the context. Raises ValueError for a
    missing key."""
    names = named(stages)
    providers = {name: place_of(name, profile) for name in names if name != EMBEDDED}
    if EMBEDDED not in names:
        yield providers
        return
    with Scripted() as server:
        yield providers | {EMBEDDED: Provider(name=EMBEDDED, base_url=server.url)}
