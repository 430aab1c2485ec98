"""The providers that a run needs, checked before anything is spent; the embedded one and own engines are started."""

from __future__ import annotations

import secrets
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.profile import EMBEDDED, Profile, ProviderPlace
from empathy.specs import RepliesSpec, Teacher, VerdictsSpec
from empathy.stages import Stage
from serving.providers import Batching, Provider
from serving.scripted import Scripted


def models(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """Provider -> the models that making `stages` asks it for."""
    found: dict[str, set[str]] = defaultdict(set)
    for stage in stages:
        if isinstance(stage.spec, VerdictsSpec):
            found[stage.spec.judge.provider].add(stage.spec.judge.model)
        elif isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher):
            found[stage.spec.responder.provider].add(stage.spec.responder.model)
    return dict(found)


def place_of(name: str, profile: Profile) -> Provider:
    """The provider as the profile has it. Raises ValueError when it is unknown or its key is not there."""
    place = profile.provider(name)
    provider = Provider(
        name=name,
        base_url=str(place.base_url),
        key_env=place.key_env,
        in_flight=place.in_flight,
        timeout_s=place.timeout_s,
        batch=batching(place),
    )
    provider.key()
    return provider


def batching(place: ProviderPlace) -> Batching | None:
    """How the profile wants the provider's batch API to be used; None where it does not."""
    if not place.batch:
        return None
    return Batching(
        poll_s=place.batch_poll_s,
        requests=place.batch_requests,
        at_once=place.batches_at_once,
        price=place.batch_price,
    )


@contextmanager
def ready(stages: Iterable[Stage], profile: Profile) -> Iterator[Mapping[str, Provider]]:
    """The providers of `stages` by name; what was started for them lives as long as the context.

    Raises ValueError for an unknown provider and for a missing key, before anything is started.
    """
    asked = models(stages)
    own = {name for name in asked if name != EMBEDDED and profile.provider(name).engine}
    providers = {name: place_of(name, profile) for name in asked if name not in own | {EMBEDDED}}
    with ExitStack() as started:
        if EMBEDDED in asked:
            server = started.enter_context(Scripted())
            providers[EMBEDDED] = Provider(name=EMBEDDED, base_url=server.url)
        for name in sorted(own):
            providers[name] = started.enter_context(own_engine(name, asked[name], profile))
        yield providers


@contextmanager
def own_engine(name: str, names: set[str], profile: Profile) -> Iterator[Provider]:
    """A model of the profile behind our own endpoint on loopback, with a key that nobody else is told."""
    from cluster.session import ray_session
    from cluster.steps.generating import resources
    from cluster.weights import found_model, own_template
    from serving.app import HttpOptions, StudentSet, start_engine

    place = profile.provider(name)
    if len(names) > 1:
        raise ValueError(
            f"provider = {name!r} serves one model ({place.engine}) and is asked for {', '.join(sorted(names))}"
        )
    folder = found_model(str(place.engine), None)
    students = StudentSet(
        base=str(folder),
        base_name=next(iter(names)),
        chat_template=own_template(folder),
        max_model_len=profile.engine.max_model_len,
        max_num_seqs=profile.engine.max_num_seqs,
        kv_cache_gib=profile.engine.kv_cache_gib,
    )
    with tempfile.TemporaryDirectory(prefix="empathy-key-") as private, ray_session(profile):
        key = Path(private) / "key"
        key.write_text(secrets.token_urlsafe(32))
        http = HttpOptions(port=0, key_file=str(key), max_queued=4096)
        with start_engine(students, http=http, resources=resources(profile.engine)) as engine:
            yield Provider(
                name=name,
                base_url=f"{engine.url}/v1",
                key_file=str(key),
                in_flight=place.in_flight,
                timeout_s=place.timeout_s,
            )
