"""What is watched while a training runs: its numbers, its health, its start, when to save, how far it is."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from empathy.stages import Stage
from empathy.train.bench import Bench

LN2 = math.log(2)
LN2_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""How far a first DPO loss may be from ln 2. In bf16 the reference's sums and the policy's differ by their rounding."""
REPORT_EVERY_S = 0.5
SERIES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
}


class Watch(TrainerCallback):
    """One training's. `starts_at_ln2`: it is a DPO, whose policy must be its reference at the first step."""

    def __init__(self, stage: Stage, bench: Bench, steps: int, precision: str, starts_at_ln2: bool):
        self.stage, self.bench, self.steps = stage, bench, steps
        self.precision, self.starts_at_ln2 = precision, starts_at_ln2
        self._saved_at = self._reported_at = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise FloatingPointError(
                    f"{self.stage!r}: {name} is {logs[name]} at step {state.global_step}; the training stops "
                    f"and its last good checkpoint "
                    'stays. Try a smaller learning_rate, or precision = "fp32"'
                )
        if self.starts_at_ln2 and state.global_step == 1:
            check_start(logs["loss"], logs["rewards/margins"], self.precision)
        if self.bench.group.first and (
            time.monotonic() - self._reported_at > REPORT_EVERY_S or state.global_step == self.steps
        ):
            self._reported_at = time.monotonic()
            self.bench.report(self.stage, state.global_step, self.steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.global_step < self.steps and self._due(state.global_step):
            self._saved_at = time.monotonic()
            control.should_save = True

    def _due(self, step: int) -> bool:
        placement = self.bench.placement
        if placement.save_every_steps and step % placement.save_every_steps == 0:
            return True
        if placement.save_every_s is None:
            return False
        return self.bench.group.from_first(time.monotonic() - self._saved_at > placement.save_every_s)


def check_start(loss: float, margin: float, precision: str) -> None:
    """The proof that DPO starts from its reference: the first loss is ln 2 and the first margin 0, before any
    update.
    """
    allowed = LN2_TOLERANCE[precision]
    if abs(loss - LN2) > allowed or abs(margin) > 2 * allowed:
        raise ValueError(
            f"DPO starts at loss {loss:.6f} and margin {margin:.6f}, not at ln 2 = {LN2:.6f} and 0: its "
            f"reference log-probabilities are not "
            "those of the policy it starts from (another checkpoint, template, precision or set of pairs)"
        )


def series(log_history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The numbers of every step, by name; also those of the steps before a resumption."""
    steps = [entry for entry in log_history if "loss" in entry]
    return {ours: [entry[theirs] for entry in steps] for theirs, ours in SERIES.items() if steps and theirs in steps[0]}
