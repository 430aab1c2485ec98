"""Put students of an experiment behind an OpenAI-compatible endpoint: the engine, template and rendering that they
were judged with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import profile as profiles
from empathy import experiment
from empathy.lower import Lowered, lower
from empathy.stages import Stage
from empathy.store import Store
from empathy.words import instead
from jobs.run import again


def chosen(names: Sequence[str], lowered: Lowered, store: Store, file: str, on: str | None) -> dict[str, Stage]:
    """The checkpoints of these names. Raises ValueError for a name that is unknown, and for one that is not made
    yet."""
    for name in names:
        if name not in lowered.checkpoints:
            raise ValueError(f"student = {name!r}: unknown{instead(name, lowered.checkpoints)}")
        if not store.done(stage := lowered.checkpoints[name]):
            command = again(file, on, store.url, until=f"{stage.kind}/{stage.key}")
            raise ValueError(f"student = {name!r}: not made in {store.url}; `{command}` makes it")
    return {name: lowered.checkpoints[name] for name in names}


def serve(
    names: Sequence[str],
    file: str,
    on: str | None,
    store_url: str | None,
    host: str,
    port: int,
    key_env: str,
    merged: bool = False,
) -> int:
    """Serve until interrupted (SIGINT or SIGTERM); `merged`: one student, as weights of its own.

    Raises ValueError for unknown students, students of several bases, several to merge, and a missing key.
    """
    from cluster.runner import ended_by_signals
    from cluster.session import ray_session
    from cluster.steps.generating import resources, student_set
    from cluster.weights import fetch, merge
    from serving.app import HttpOptions, start_engine

    if merged and len(names) > 1:
        raise ValueError(f"--merged serves one student, not {len(names)}: without it they share one base as adapters")
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    x = experiment.load(file)
    checkpoints = chosen(names, lower(x), store, file, on)
    http = HttpOptions(host=host, port=port, key_env=key_env)
    http.read_key()
    cache = Path(profile.cache).expanduser()
    weights = [fetch(stage, store, cache) for stage in checkpoints.values()]
    if merged:
        weights = [merge(names[0], weights[0], x.train.precision, cache)]
    if len({w.base for w in weights}) > 1:
        raise ValueError(
            f"students = {', '.join(names)}: they stand on different bases; serve each base's students apart"
        )
    students = student_set(weights, profile.engine, x.train.precision, list(checkpoints))
    try:
        with (
            ray_session(profile),
            ended_by_signals(),  # after Ray, which sets a handler of its own
            start_engine(students, http=http, resources=resources(profile.engine)) as running,
        ):
            told = f"{running.url}/v1 serves {', '.join(names)}; the key is in ${key_env}; interrupt to stop"
            print(told, flush=True)
            running.wait()
    except KeyboardInterrupt:  # how it is meant to end
        print("stopped", file=sys.stderr)
    return 0
