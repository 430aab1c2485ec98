"""TRL's trainers, fed with our batches, and the DeepSpeed configuration they run under.

What is theirs: the losses, the optimiser's loop, ZeRO. What is ours: which examples make which step, so that workers
and micro-batches do not change it; and where the files of a resumable checkpoint go.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from trl import DPOTrainer, SFTTrainer
from trl.trainer import utils as trl_utils

from empathy.specs import CheckpointSpec, Optimiser
from empathy.train import order
from empathy.train.bench import Bench
from empathy.train.placement import Cut
from empathy.train.progress import Progress

assert callable(trl_utils._use_triton)
vars(trl_utils)["_use_triton"] = lambda device: True
"""TRL's fused head scores the supervised positions alone where Triton is, and all of them elsewhere, for compilers that
want one shape. Nothing is compiled here, so the prompt's positions are left out on a CPU too."""


@dataclass(frozen=True)
class Plan:
    """A training's steps: `batches` of example numbers, cut for this worker. `lengths`: tokens an example."""

    batches: list[list[int]]
    lengths: list[int]
    cut: Cut
    rank: int

    @classmethod
    def of(cls, lengths: list[int], optimiser: Optimiser, seed: int, cut: Cut, rank: int) -> Plan:
        return cls(order.batches(len(lengths), optimiser.batch_examples, optimiser.epochs, seed), lengths, cut, rank)

    @property
    def steps(self) -> int:
        return len(self.batches)

    def micro_batches(self) -> list[list[int]]:
        return order.micro_batches(self.batches, self.lengths, self.cut, self.rank)

    def tokens(self) -> int:
        """Tokens the model reads over all steps and workers, padding left out."""
        return sum(self.lengths[i] for batch in self.batches for i in batch)


class _Planned:
    """Mixed into a TRL trainer; `plan` and `progress` are set before `train()`."""

    plan: Plan
    progress: Progress

    def get_train_dataloader(self: Any) -> DataLoader[Any]:
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.plan.micro_batches(),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Resuming needs DeepSpeed's files alone; finished weights are saved by `empathy.train.save`."""
        os.makedirs(output_dir or self.args.output_dir, exist_ok=True)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        step = self.state.global_step
        self.progress.put(Path(self.args.output_dir) / f"checkpoint-{step}", step)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: counting walks over all modules at every micro-batch."""
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The artifact's manifest says what a checkpoint is."""


class PlannedSft(_Planned, SFTTrainer):
    """SFT on rows that are already token ids and labels."""


class PlannedDpo(_Planned, DPOTrainer):
    """DPO on pairs that are already token ids and carry the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With the reference's sums as they are. transformers gives whatever is no integer DeepSpeed's precision, and
        in bf16 a sum of -488.2 nats is -488, one of -621.2 is -620."""
        exact = {name: inputs[name].to(self.args.device) for name in ("ref_chosen_logps", "ref_rejected_logps")}
        return {**super()._prepare_inputs(inputs), **exact}


def arguments(spec: CheckpointSpec, optimiser: Optimiser, plan: Plan, bench: Bench, output_dir: str) -> dict[str, Any]:
    """Keyword arguments for SFTConfig and DPOConfig alike."""
    placement = bench.placement
    warmup = round(optimiser.warmup_fraction * plan.steps)
    schedule = "constant_with_warmup" if optimiser.schedule == "constant" and warmup else optimiser.schedule
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": plan.cut.micro_batch,
        "gradient_accumulation_steps": plan.cut.accumulation,
        "num_train_epochs": 1,  # the plan holds all epochs as one
        "learning_rate": optimiser.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "weight_decay": optimiser.weight_decay,
        "max_grad_norm": optimiser.max_grad_norm,
        "optim": "adamw_torch",
        "seed": spec.seed,
        "bf16": spec.precision == "bf16",
        "use_cpu": bench.group.device == "cpu",
        "max_length": None,  # too long rows were dropped and counted; none is cut
        "gradient_checkpointing": placement.gradient_checkpointing,
        "average_tokens_across_devices": True,
        "accelerator_config": {"use_configured_state": True},  # see group.tell_accelerate
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `Watch` decides when
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": bench.group.device != "cpu",
        "deepspeed": deepspeed_config(spec, optimiser, plan.cut, placement.zero_stage),
    }


def deepspeed_config(spec: CheckpointSpec, optimiser: Optimiser, cut: Cut, zero_stage: int) -> dict[str, Any]:
    return {
        "train_batch_size": optimiser.batch_examples,
        "train_micro_batch_size_per_gpu": cut.micro_batch,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": optimiser.max_grad_norm,
        # A gradient that is not finite ends the training (`Watch`), so DeepSpeed need not look for one, parameter by
        # parameter, to leave its step out: half of the kernels that a step of a 1B model with adapters starts on a GPU.
        "bf16": {"enabled": spec.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": 50_000_000,  # elements; the default of 5e8 takes 2 GB
            "allgather_bucket_size": 50_000_000,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
