"""SFT and DPO of ours against plain TRL, with its defaults and tuned, on models of true shape with random weights.

    python -m benchmarks.training [--quick] [--shapes NAME ...] [--turns N] [--unshared]

All read the same base from a folder and the same examples: a task text, a dialogue, and two replies to it, about
as long as the paper's. They take turns in one process, on the GPU where there is one, else on one core.

- ours: `empathy.train.session` under DeepSpeed ZeRO-1, with what it checks and saves.
- unshared (with --unshared): ours, but each row reads its prompt itself, padding too (`share_prefixes = false`).
- default: SFTTrainer and DPOTrainer as they come.
- tuned: the weights in bf16 (on a GPU), no gradient checkpointing, larger micro-batches; SFT in batches of similar
  lengths, DPO with its reference computed once.

Seconds a step are those of the steps after the first ones. `dpo3` is three epochs of DPO with what its reference takes:
per step for TRL's default, one pass before for the others. Real tokens are those of the examples, without padding, the
prompt of a pair counted twice; distinct ones leave out what examples of one step have in common from their beginning
on. `mfu` is 6 (LoRA: 4) FLOPs a weight and real token (docs/money.md) over the peak, and over the rate of a large
matrix product measured here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.training_data import demonstrations, make_model, on_gpu, preferences, rows_of, tokens_a_step
from benchmarks.training_ways import BATCH, Case, Ours, Timed, Trl
from empathy.specs import Full, Lora
from jobs.estimate.shapes import Shape, known

PEAK_TFLOPS = 989.0
"""Dense bf16 of an H100 SXM."""
TINY = Shape(hidden=256, layers=4, heads=4, kv_heads=2, head_width=64, intermediate=768, vocab=4096, tied=True)
QUICK = (Case("tiny", Lora(), 6, 5),)
LAPTOP = (Case("tiny", Full(), 12, 8), Case("tiny", Lora(), 12, 8))
GPU = (
    Case("meta-llama/Llama-3.2-1B", Full(), 60, 40),
    Case("meta-llama/Llama-3.2-1B", Lora(), 60, 40),
    Case("Qwen/Qwen2.5-0.5B", Full(), 60, 40),
    Case("meta-llama/Llama-3.1-8B", Lora(), 20, 12, micro_batch=8),
)


def matrix_tflops() -> float:
    """Of a large matrix product here."""
    import torch

    n, kind = (8192, torch.bfloat16) if on_gpu() else (1024, torch.float32)
    a, b = (torch.randn(n, n, dtype=kind, device="cuda" if on_gpu() else "cpu") for _ in range(2))
    times = []
    for _ in range(20):
        began = time.perf_counter()
        c = a @ b
        c[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - began)
    return 2 * n**3 / statistics.median(times) / 1e12


def attempt(work: Callable[[], Timed]) -> Timed | None:
    """None where the device's memory does not do."""
    import torch

    try:
        return work()
    except torch.OutOfMemoryError:
        return None


def measure(case: Case, turns: int, matrix: float, unshared: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a case, and how many times faster ours is."""
    shape = known().get(case.name, TINY)
    sft, dpo = demonstrations(BATCH * case.sft_steps), preferences(BATCH * case.dpo_steps)
    with tempfile.TemporaryDirectory(prefix="empathy-training-") as name:
        folder = Path(name)
        make_model(shape, case.name, folder / "base")
        ways = {
            "ours": Ours(folder, case, sft, dpo),
            **({"unshared": Ours(folder, case, sft, dpo, shared=False)} if unshared else {}),
            "default": Trl(folder, case, sft, dpo, tuned=False),
            "tuned": Trl(folder, case, sft, dpo, tuned=True),
        }
        counted = {what: tokens_a_step(rows, BATCH) for what, rows in rows_of(folder, sft, dpo).items()}
        taken: dict[tuple[str, str], list[Timed]] = {}
        for _ in range(turns):
            for what in ("sft", "dpo"):
                for way, trained in ways.items():
                    timed = attempt(getattr(trained, what))
                    print(f"{case.label} {what} {way}: {timed}", flush=True)
                    if timed:
                        taken.setdefault((what, way), []).append(timed)
    flops = (6 if isinstance(case.tuning, Full) else 4) * shape.multiplied
    rows = [row(case, what, way, timed, counted[what], flops, matrix) for (what, way), timed in taken.items()]
    return rows, ratios(case, taken)


def row(
    case: Case, what: str, way: str, turns: list[Timed], counted: tuple[float, float], flops: float, matrix: float
) -> dict[str, Any]:
    real, distinct = counted
    step_s = statistics.median(t.step_s for t in turns)
    tflops = flops * real / step_s / 1e12
    return {
        "case": case.label,
        "what": what,
        "way": way,
        "step_s": step_s,
        "real_tokens_per_s": real / step_s,
        "distinct_tokens_per_s": distinct / step_s,
        "mfu": tflops / PEAK_TFLOPS if on_gpu() else float("nan"),
        "of_matrix_rate": tflops / matrix,
        "peak_gib": max(t.peak_gib for t in turns),
        "reference_s": max(t.extra_s for t in turns),
        "whole_s": statistics.median(t.whole_s for t in turns),
    }


def ratios(case: Case, taken: dict[tuple[str, str], list[Timed]]) -> dict[str, float]:
    """The others' seconds over ours, medians over the turns: SFT's steps, and three epochs of DPO."""

    def step_s(what: str, way: str) -> float:
        return statistics.median(t.step_s for t in taken[what, way])

    def dpo3_s(way: str) -> float:
        return 3 * case.dpo_steps * step_s("dpo", way) + max(t.extra_s for t in taken["dpo", way])

    found = {}
    for way in ("unshared", "default", "tuned"):
        if {("sft", "ours"), ("sft", way)} <= taken.keys():
            found[f"{case.label}_sft_vs_{way}"] = step_s("sft", way) / step_s("sft", "ours")
        if {("dpo", "ours"), ("dpo", way)} <= taken.keys():
            found[f"{case.label}_dpo3_vs_{way}"] = dpo3_s(way) / dpo3_s("ours")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one turn")
    parser.add_argument("--shapes", nargs="+", help="only cases whose label contains one of these")
    parser.add_argument("--turns", type=int, default=2, help="how often each way is measured")
    parser.add_argument("--unshared", action="store_true", help="ours without `share_prefixes`, too")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cases = QUICK if options.quick else GPU if on_gpu() else LAPTOP
    labels = [c.label for c in cases]
    if unknown := [s for s in options.shapes or () if not any(s in label for label in labels)]:
        parser.error(f"--shapes {' '.join(unknown)}: there are {', '.join(labels)}")
    cases = tuple(c for c in cases if not options.shapes or any(s in c.label for s in options.shapes))
    if not on_gpu():
        import torch

        torch.set_num_threads(1)
    matrix, rows, figures = matrix_tflops(), [], {}
    for case in cases:
        made, compared = measure(case, 1 if options.quick else options.turns, matrix, options.unshared)
        rows, figures = rows + made, figures | compared
    figures["matrix_tflops"] = matrix
    report("training", rows, figures, ("torch", "transformers", "trl", "peft", "deepspeed"))


if __name__ == "__main__":
    main()
