"""python -m empathy.train --store URL --stages FILE [--workers N ...]: a training session as plain processes,
without Ray.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from empathy.stages import Stage, from_json
from empathy.train import launch
from empathy.train.placement import Placement

TYPES: dict[str, Any] = {
    "device": str,
    "local_dir": str,
    "save_every_s": float,
    "timeout_s": float,
    "gradient_checkpointing": lambda text: text.lower() in ("1", "true", "yes"),
}


def parser() -> argparse.ArgumentParser:
    """Options; those of `Placement` by its field names."""
    made = argparse.ArgumentParser(prog="python -m empathy.train", description=__doc__, epilog=Placement.__doc__)
    made.add_argument("--store", help="a folder or s3://bucket/prefix")
    made.add_argument("--endpoint", help="of an S3-compatible server")
    made.add_argument("--region")
    made.add_argument("--stages", type=Path, help="JSON written by empathy.stages.to_json")
    for field in fields(Placement):
        made.add_argument(f"--{field.name.replace('_', '-')}", type=TYPES.get(field.name, int), default=field.default)
    made.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--progress-fd", type=int, help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    if options.rank_of:
        launch.rank_main(options.rank_of, options.progress_fd)
        return
    if not options.store or not options.stages:
        parser().error("--store and --stages are needed")
    placement = Placement(**{f.name: getattr(options, f.name) for f in fields(Placement)})
    place = {"endpoint": options.endpoint, "region": options.region} if options.store.startswith("s3://") else {}
    started = time.monotonic()

    def say(stage: Stage, done: int, total: int) -> None:
        print(
            f"[{time.monotonic() - started:6.1f} s] {stage.kind} {stage.label or stage.key[:8]}: {done:,} of {total:,}",
            file=sys.stderr,
        )

    try:
        launch.run(from_json(options.stages.read_text()), options.store, place, placement, say)
    except RuntimeError as error:  # the failed process has told its own story
        sys.exit(str(error))


if __name__ == "__main__":
    main()
