"""Where and how fast a session trains. Nothing here can change a result, so nothing here is in a key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Placement:
    """workers: processes, one a GPU. micro_batch: how many examples (a DPO pair is one) a worker holds at once at
    most, None = its share. zero_stage: DeepSpeed ZeRO. save_every_steps, save_every_s: how often a resumable checkpoint
    goes to the store, None = not by that measure. threads: CPU threads a worker, None = its share of the machine.
    groups: how many groups of `workers` compute side by side; each takes its share of a machine's CPU threads.
    share_prefixes: what rows of a micro-batch have in common is read once, and padding never
    (`empathy.train.sharing`; not under ZeRO-3).
    gpu_share: how much of its GPU is a worker's; what else computes there has the rest.
    local_dir: scratch space, None = the system's. score_tokens: padded tokens in one batch of log-probabilities.
    timeout_s: how long a worker waits for the others before it gives up.
    """

    workers: int = 1
    groups: int = 1
    micro_batch: int | None = None
    zero_stage: Literal[0, 1, 2, 3] = 2
    device: Device = "auto"
    gpu_share: float = 1.0
    gradient_checkpointing: bool = False
    share_prefixes: bool = True
    save_every_steps: int | None = None
    save_every_s: float | None = 300.0
    local_dir: str | None = None
    threads: int | None = None
    score_tokens: int = 8192
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        least = {"workers": 1, "groups": 1, "micro_batch": 1, "save_every_steps": 1, "threads": 1, "score_tokens": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} = {value}: must be at least {low}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage = {self.zero_stage}: DeepSpeed has stages 0, 1, 2 and 3")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cut:
    """How a step's examples are cut: `micro_batch` at once, `accumulation` times, on each of `workers`."""

    workers: int
    micro_batch: int
    accumulation: int


def cut(batch_examples: int, placement: Placement, workers: int) -> Cut:
    """Cut a batch of `batch_examples` over `workers`. Raises ValueError, naming what would divide."""
    if batch_examples % workers:
        fits = [w for w in range(1, 2 * workers) if batch_examples % w == 0]
        raise ValueError(
            f"batch_examples = {batch_examples} cannot be shared by workers = {workers}: set workers to one of "
            f"{fits}, or change "
            "batch_examples (which makes another student)"
        )
    share = batch_examples // workers
    micro = max(m for m in range(1, share + 1) if share % m == 0 and m <= (placement.micro_batch or share))
    return Cut(workers, micro, share // micro)
