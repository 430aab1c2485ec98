"""python -m tests.training_job STORE [failing | groups]: the small chain of `tests.lessons` (or its stages that fail)
on two Ray Train workers, or its students side by side on two groups of one; a process that tests may kill.
"""

from __future__ import annotations

import os
import sys

# Tests run on busy machines: what Ray waits for its own helpers to start, 30 s each by default.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")

import ray

from cluster.steps import training
from empathy.store import Store
from empathy.train.placement import Placement
from tests.lessons import chain, failing, side_by_side

PLACEMENT = Placement(workers=2, device="cpu", threads=1, save_every_steps=2)
GROUPS = Placement(workers=1, groups=2, device="cpu", threads=1, save_every_steps=2)


def main() -> None:
    store = Store.open(sys.argv[1])
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    stages, placement = chain(store, epochs=6), PLACEMENT
    if sys.argv[2:] == ["failing"]:
        stages = failing(store)
    if sys.argv[2:] == ["groups"]:
        stages, placement = side_by_side(store), GROUPS
    training.train(stages, store.url, {}, placement, lambda stage, done, total: print(stage.label, done, total), 2)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
