"""What it takes to plan a large grid. `python -m benchmarks.planning [--quick]`

The shipped demo with so many seeds that the grid has 10,000 stages (--quick: 2,000), planned on an empty store and on
one where many are done. Limit: pure Python, some 10 microseconds a field that is hashed. Bar: 10 s in all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.common import report, seconds
from cluster.profile import Profile
from empathy import documents
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.stages import Stage, missing, walk
from empathy.store import MANIFEST, Store
from jobs import plan

DEMO = Path(__file__).parent.parent / "jobs" / "experiments" / "demo.toml"


def grid(least_stages: int) -> Experiment:
    """The demo with as many seeds as it takes."""
    data = tomllib.loads(DEMO.read_text(encoding="utf-8"))

    def with_seeds(n: int) -> Experiment:
        return documents.validate(Experiment, data | {"grid": data["grid"] | {"seed": list(range(n))}}, DEMO.name)

    one, two = (len(list(walk([lower(with_seeds(n)).report]))) for n in (1, 2))
    return with_seeds(1 + -(-(least_stages - one) // (two - one)))


def pretend_done(stages: list[Stage], store: Path) -> None:
    """Manifests without parts: all that planning looks at."""
    for stage in stages:
        folder = store / stage.kind / stage.key
        folder.mkdir(parents=True)
        manifest = {"key": stage.key, "identity": stage.identity, "meta": {}, "made": {}, "parts": [], "files": {}}
        (folder / MANIFEST).write_text(json.dumps(manifest))


def planned(x: Experiment, store_url: str) -> dict[str, Any]:
    """Seconds of each step, and how many stages there are and are to be made."""
    found: dict[str, Any] = {}
    graph: list[Lowered] = []
    found["lower_s"] = seconds(lambda: graph.append(lower(x)))
    stages: list[Stage] = []
    found["walk_s"] = seconds(lambda: stages.extend(walk([graph[0].report])))
    store, done = Store.open(store_url), set[str]()
    found["finished_s"] = seconds(lambda: done.update(store.finished(stages)))
    found["missing_s"] = seconds(lambda: missing([graph[0].report], lambda stage: stage.key in done))
    profile = Profile(store=store_url)
    found["text_s"] = seconds(lambda: plan.text(x, graph[0], [graph[0].report], profile))
    return {"stages": len(stages), "done": len(done)} | found | {"plan_s": found["lower_s"] + found["text_s"]}


def measured(least_stages: int) -> list[dict[str, Any]]:
    """Planned on an empty store, and on one that has half of what is made last."""
    x = grid(least_stages)
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"store": "empty"} | planned(x, f"{folder}/empty")]
        late = {"logprobs", "verdicts"}  # what hides nothing else and is not read to plan
        some = [s for s in walk([lower(x).report]) if s.kind in late][::2]
        pretend_done(some, Path(folder) / "half")
        return [*rows, {"store": "half done"} | planned(x, f"{folder}/half")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rows = measured(2_000 if parser.parse_args().quick else 10_000)
    figures = {f"{row['store'].replace(' ', '_')}_plan_s": row["plan_s"] for row in rows}
    report("planning", rows, {"stages": rows[0]["stages"], **figures}, ["pydantic"])


if __name__ == "__main__":
    main()
