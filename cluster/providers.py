"""The providers that a run needs, checked before anything is spent; the embedded one and own engines are started."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.embedded import check_models
from cluster.profile import EMBEDDED, Profile, ProviderPlace
from empathy import judges, replies
from empathy.requests import Asking
from empathy.specs import RepliesSpec, Teacher, VerdictsSpec
from empathy.stages import Stage
from empathy.store import Store
from serving.ledger import Ledger
from serving.providers import Batching, Provider
from serving.scripted import Scripted

NOBODY = "http://127.0.0.1:9/v1"
"""The discard port: the address of an engine that is not started because the ledger holds every reply."""


def models(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """Provider -> the models that making `stages` asks it for."""
    found: dict[str, set[str]] = defaultdict(set)
    for stage in stages:
        if place := asked(stage):
            found[place[0]].add(place[1])
    return dict(found)


def asked(stage: Stage) -> tuple[str, str] | None:
    """(provider, model) that making a stage asks; None when it asks nobody."""
    if isinstance(stage.spec, VerdictsSpec):
        return stage.spec.judge.provider, stage.spec.judge.model
    if isinstance(stage.spec, RepliesSpec) and isinstance(stage.spec.responder, Teacher):
        return stage.spec.responder.provider, stage.spec.responder.model
    return None


def place_of(name: str, profile: Profile) -> Provider:
    """The provider as the profile has it. Raises ValueError when it is unknown or its key is not there."""
    place = profile.provider(name)
    provider = Provider(
        name=name,
        base_url=str(place.base_url),
        key_env=place.key_env,
        in_flight=place.in_flight,
        timeout_s=place.timeout_s,
        attempts=place.attempts,
        patience_s=place.patience_s,
        served=place.served,
        batch=_batching(place),
    )
    provider.key()
    return provider


def _batching(place: ProviderPlace) -> Batching | None:
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
def ready(stages: Sequence[Stage], profile: Profile) -> Iterator[Places]:
    """The providers of `stages` by name; what was started for them lives no longer than the context.

    Raises ValueError, before anything is started, for an unknown provider, a missing key, a model that the embedded
    provider has not, and a model of the profile that cannot be served.
    """
    check_models(stages)
    names = models(stages)
    own = {name: own_model(name, names[name], profile) for name in sorted(names) if is_own(name, profile)}
    there = {name: place_of(name, profile) for name in names if name not in own and name != EMBEDDED}
    with ExitStack() as started:
        if EMBEDDED in names:
            server = started.enter_context(Scripted())
            there[EMBEDDED] = Provider(name=EMBEDDED, base_url=server.url)
        places = Places(there, own, stages, profile)
        started.callback(places.release)
        yield places


def is_own(name: str, profile: Profile) -> bool:
    """Whether the run serves this provider's model itself."""
    return name != EMBEDDED and profile.provider(name).engine is not None


class Places(Mapping[str, Provider]):
    """Providers by name. A model of our own is started when it is looked up and the ledger does not hold all that it
    is to say; `release` ends it, and the next look-up starts it again."""

    def __init__(
        self, there: Mapping[str, Provider], own: Mapping[str, OwnModel], stages: Sequence[Stage], profile: Profile
    ):
        self._there, self._own, self._stages, self._profile = there, own, stages, profile
        self._up: dict[str, tuple[Provider, ExitStack]] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        return iter([*self._there, *self._own])

    def __len__(self) -> int:
        return len(self._there) + len(self._own)

    def __getitem__(self, name: str) -> Provider:
        if name in self._there:
            return self._there[name]
        model = self._own[name]
        with self._lock:
            if name not in self._up:
                if not self._is_needed(name):
                    return Provider(name=name, base_url=NOBODY)
                started = ExitStack()
                self._up[name] = started.enter_context(own_engine(model, self._profile)), started
            return self._up[name][0]

    def release(self, names: Iterable[str] | None = None) -> None:
        """End the engines of `names` (or all) that were started; what they hold is free for others."""
        with self._lock:
            for name in list(self._up if names is None else names):
                if name in self._up:
                    self._up.pop(name)[1].close()

    def _is_needed(self, name: str) -> bool:
        store = self._profile.open_store()
        left = [s for s in self._stages if (place := asked(s)) and place[0] == name and not store.done(s)]
        with Ledger(store.files) as ledger:
            return not all(is_answered(stage, store, ledger) for stage in left)


def release(places: Mapping[str, Provider], stages: Sequence[Stage]) -> None:
    """End the models of our own that `stages` asked."""
    if isinstance(places, Places):
        places.release(models(stages))


def is_answered(stage: Stage, store: Store, ledger: Ledger) -> bool:
    """Whether the ledger holds every reply that making `stage` asks for; False while its inputs are not finished."""
    if not all(store.done(above) for above in stage.inputs.values()):
        return False
    askings = judges.askings if isinstance(stage.spec, VerdictsSpec) else replies.askings
    parts = range(len(store.get(stage.inputs["dialogues"]).parts))
    return all(_knows(asking, ledger) for k in parts for _, asking in askings(stage, store, k))


def _knows(asking: Asking[object], ledger: Ledger) -> bool:
    try:
        request = next(asking)
        while (answer := ledger.get(request.key)) is not None:
            request = asking.send(answer)
    except StopIteration:  # it has its record
        return True
    return False


# ---------------------------------------------------------------- models that the run serves itself


@dataclass(frozen=True)
class OwnModel:
    """`model` as experiments name it, from `source`: a folder, or a name of the hub."""

    provider: str
    model: str
    source: str
    template: str


def own_model(name: str, names: set[str], profile: Profile) -> OwnModel:
    """What provider `name` serves. Raises ValueError, before anything is started, when it cannot: several models are
    asked of it, or its folder is no model with a chat template."""
    from cluster.weights import found_model, own_template
    from serving.adapters import check_base

    source = str(profile.provider(name).engine)
    if len(names) > 1:
        raise ValueError(
            f"provider = {name!r} serves one model (engine = {source!r}) and is asked for "
            f"{', '.join(sorted(names))}; give each a table [providers.NAME] of its own in the profile, and name that "
            "in the experiment"
        )
    where = f"[providers.{name}] engine"
    folder = found_model(source, None, where, weights=False)
    if Path(source).expanduser().is_dir():
        try:
            check_base(folder)
        except ValueError as error:
            raise ValueError(f"{where} = {source!r}: {error}") from error
    return OwnModel(name, next(iter(names)), source, own_template(folder, where))


@contextmanager
def own_engine(own: OwnModel, profile: Profile) -> Iterator[Provider]:
    """A model behind our own endpoint on loopback, with a key that nobody else is told."""
    from cluster.session import ray_session
    from cluster.steps.generating import resources
    from cluster.weights import Weights, found_model, saved_dtype
    from serving.app import HttpOptions, StudentSet, start_engine
    from serving.bodies import Limits

    place = profile.provider(own.provider)
    folder = found_model(own.source, None, f"[providers.{own.provider}] engine")
    students = StudentSet(
        base=str(folder),
        base_name=own.model,
        chat_template=own.template,
        dtype=saved_dtype(folder),
        max_model_len=Weights(own.model, "", folder, own.template).max_model_len(profile.engine.max_model_len),
        max_num_seqs=profile.engine.max_num_seqs,
        kv_cache_gib=profile.engine.kv_cache_gib,
    )
    with tempfile.TemporaryDirectory(prefix="empathy-key-") as private, ray_session(profile):
        key = Path(private) / "key"
        key.write_text(secrets.token_urlsafe(32))
        limits = Limits(max_new_tokens=students.max_model_len)
        http = HttpOptions(port=0, key_file=str(key), max_queued=4096, max_connections=8192, limits=limits)
        with start_engine(students, http=http, resources=resources(profile.engine)) as engine:
            yield Provider(
                name=own.provider,
                base_url=f"{engine.url}/v1",
                key_file=str(key),
                in_flight=place.in_flight,
                timeout_s=place.timeout_s,
                attempts=place.attempts,
                patience_s=place.patience_s,
            )
