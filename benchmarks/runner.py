"""What the runner's bookkeeping costs a stage: schedule, leases, progress and threads, around stages that do nothing.

    python -m benchmarks.runner [--quick] [--store URL --endpoint URL]

A grid of stages that are only committed, in four layers and three lanes, through `cluster.runner.run`; bare is the same
commits in a loop. The difference is what a stage costs beside its own work. `idle_ms` is a second run, which finds all
of it made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import report, seconds
from cluster import runner
from cluster.executors import Context, Lane, Loop
from cluster.profile import Profile
from cluster.progress import Progress
from cluster.schedule import Place
from cluster.work import Work
from empathy.specs import DialoguesSpec, LogprobsSpec, PaperSplit, ReportSpec
from empathy.stages import Stage, walk
from empathy.store import Store


def grid(stages: int, run: int) -> Stage:
    """A report over about `stages` distinct stages: a source, a third of them on it, chains of two more on each."""
    source = Stage(DialoguesSpec(source="jsonl", digest=str(run), split=PaperSplit()))
    wide = (stages - 2) // 3
    first = [Stage(LogprobsSpec(max_length_tokens=10 + k), {"dialogues": source}) for k in range(wide)]
    second = [Stage(ReportSpec(seed=1), {"a": stage}) for stage in first]
    third = [Stage(LogprobsSpec(), {"a": stage}) for stage in second]
    return Stage(ReportSpec(), {str(k): stage for k, stage in enumerate(third)})


def lanes() -> list[Lane]:
    """Three lanes whose work is a commit; one takes its stages in batches, as asking does."""

    def loop(at_most: int) -> Loop:
        def make(places: Sequence[Place], work: Work, context: Context) -> None:
            while batch := work.next(places, at_most):
                work.make(batch, lambda stages: commit(stages, context.store))

        return make

    kinds = {"dialogues": 1, "report": 1, "logprobs": 64}
    return [
        Lane(kind, lambda s, kind=kind: "" if s.kind == kind else None, loop(n), on_ray=lambda context: False)
        for kind, n in kinds.items()
    ]


def commit(stages: Sequence[Stage], store: Store) -> None:
    for stage in stages:
        store.writer(stage).commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 stages instead of 10,000")
    parser.add_argument("--store", help="a folder or s3://bucket/prefix; by default a new folder under build/")
    parser.add_argument("--endpoint", help="http://host:port of an S3-compatible server")
    options = parser.parse_args()
    stages = 1_000 if options.quick else 10_000
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="build") as folder:
        place = {"endpoint": options.endpoint} if options.endpoint else {}
        store = Store.open(options.store or f"{folder}/store", **place)
        store.files.probe()
        target, plain = grid(stages, 0), list(walk([grid(stages, 1)]))

        def run() -> None:
            done = runner.run([target], Context(store, Profile(), Progress(out=lambda line: None)), lanes())
            assert not done.failures

        ours_s = seconds(run)
        bare_s = seconds(lambda: commit(plain, store))
        again_s = seconds(run)
    n = len(plain)
    rows = [
        {"what": "through the runner", "seconds": ours_s, "ms_a_stage": 1e3 * ours_s / n},
        {"what": "bare commits", "seconds": bare_s, "ms_a_stage": 1e3 * bare_s / n},
        {"what": "a second run", "seconds": again_s, "ms_a_stage": 1e3 * again_s / n},
    ]
    figures = {"stages": float(n), "added_ms": 1e3 * (ours_s - bare_s) / n, "idle_ms": 1e3 * again_s / n}
    report("runner", rows, figures, ("pyarrow", "pydantic"))


if __name__ == "__main__":
    main()
