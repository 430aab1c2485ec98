"""The three that `benchmarks.training` compares: each trains once and says how long it took."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training_data import on_gpu
from empathy import templates
from empathy.records import Demonstration, Preference
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    Full,
    HubBase,
    LogprobsSpec,
    Lora,
    Optimiser,
    RandomSplit,
    Sft,
)
from empathy.stages import Stage
from empathy.store import Store
from empathy.train.placement import Placement

BATCH, MAX_LENGTH = 16, 512
WARM = 3
"""Steps that are not timed."""


@dataclass(frozen=True)
class Case:
    """A model's shape and how it is tuned. `steps`: of SFT, and of an epoch of DPO. micro_batch: of ours and of tuned
    TRL."""

    name: str
    tuning: Full | Lora
    sft_steps: int
    dpo_steps: int
    micro_batch: int = BATCH

    @property
    def label(self) -> str:
        return f"{self.name.rpartition('/')[2].lower()}-{self.tuning.type}"


@dataclass
class Timed:
    """One training: `step_s` a step; `whole_s` with all around it; `extra_s`: the reference; peak_gib of the GPU."""

    step_s: float
    whole_s: float
    peak_gib: float
    extra_s: float = 0.0


class Clock:
    """Times of steps. `step_s` leaves the first ones out where others were heard of: ours tells them twice a second."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}

    def tick(self, step: int) -> None:
        self._at[step] = time.perf_counter()

    def step_s(self) -> float:
        steps = sorted(self._at)
        warm = [step for step in steps if step >= WARM]
        first, last = (warm if len(warm) > 1 else steps)[0], steps[-1]
        return (self._at[last] - self._at[first]) / (last - first)


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """GiB that were taken at most inside."""
    import torch

    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 2**30 if on_gpu() else 0.0


class Ours:
    """Stages over a store of this benchmark's own."""

    def __init__(
        self, folder: Path, case: Case, sft: Sequence[Demonstration], dpo: Sequence[Preference], shared: bool = True
    ):
        self._case, self._folder, self._number = case, folder, 0
        self._store = Store.open(str(folder / ("store" if shared else "store-unshared")))
        self._kept = {"precision": "bf16" if on_gpu() else "fp32", "max_length_tokens": MAX_LENGTH}
        self._base = Stage(
            CheckpointSpec(base=HubBase(model=case.label, digest=case.label), template=templates.load("plain")),
            locator={"path": str(folder / "base")},
        )
        self._sft, self._dpo = self._examples("sft", sft), self._examples("dpo", dpo)
        device = "cuda" if on_gpu() else "cpu"
        self._place = Placement(
            device=device,
            micro_batch=case.micro_batch,
            zero_stage=1,
            threads=1,
            save_every_s=None,
            share_prefixes=shared,
        )
        self._make([self._base])

    def _examples(self, objective: Any, records: Sequence[Any]) -> Stage:
        source = Stage(DialoguesSpec(source="jsonl", digest=f"{self._case.label}-{objective}", split=RandomSplit()))
        stage = Stage(ExamplesSpec(method=Direct(), objective=objective), {"dialogues": source})
        writer = self._store.writer(stage)
        writer.write_records(0, records, type(records[0]))
        writer.commit()
        return stage

    def _make(self, stages: list[Stage], progress: Any = None) -> None:
        from empathy.train import session

        session.run(stages, self._store, self._place, progress)

    def _optimiser(self) -> Optimiser:
        self._number += 1  # another learning rate is another checkpoint: nothing is found made
        return Optimiser(learning_rate=1e-6 * self._number, epochs=1, batch_examples=BATCH)

    def _timed(self, stage: Stage, before: list[Stage]) -> Timed:
        clock, extra_s = Clock(), 0.0
        if before:
            began = time.perf_counter()
            self._make(before)
            extra_s = time.perf_counter() - began
        with memory() as peak:
            began = time.perf_counter()
            self._make([stage], lambda made, done, total: clock.tick(done))
            return Timed(clock.step_s(), time.perf_counter() - began, peak(), extra_s)

    def sft(self) -> Timed:
        objective = Sft(optimiser=self._optimiser(), tuning=self._case.tuning)
        inputs = {"base": self._base, "examples": self._sft}
        return self._timed(Stage(CheckpointSpec(objective=objective, **self._kept), inputs), [])

    def dpo(self) -> Timed:
        reference = Stage(LogprobsSpec(**self._kept), {"checkpoint": self._base, "examples": self._dpo})
        objective = Dpo(optimiser=self._optimiser(), tuning=self._case.tuning)
        inputs = {"base": self._base, "examples": self._dpo, "reference": reference}
        before = [] if self._store.done(reference) else [reference]
        return self._timed(Stage(CheckpointSpec(objective=objective, **self._kept), inputs), before)


class Trl:
    """Plain TRL over the same folder and examples."""

    def __init__(self, folder: Path, case: Case, sft: Sequence[Any], dpo: Sequence[Any], tuned: bool):
        self._case, self._folder, self._tuned = case, folder, tuned
        self._sft = [{"prompt": messages(e), "completion": said(e.reply)} for e in sft]
        self._dpo = [{"prompt": messages(p), "chosen": said(p.chosen), "rejected": said(p.rejected)} for p in dpo]

    def _arguments(self) -> dict[str, Any]:
        micro = self._case.micro_batch if self._tuned else 8
        given = {
            "output_dir": str(self._folder / "trl"),
            "gradient_accumulation_steps": BATCH // micro,
            "num_train_epochs": 1,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not on_gpu(),
            "bf16": on_gpu(),
        }
        if self._tuned:
            given |= {
                "per_device_train_batch_size": micro,
                "gradient_checkpointing": False,
            }
        return given

    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        if not self._tuned:
            return str(self._folder / "base")
        kind = torch.bfloat16 if on_gpu() else torch.float32
        return AutoModelForCausalLM.from_pretrained(self._folder / "base", dtype=kind)

    def _lora(self) -> Any:
        from empathy.train.starts import lora_config

        return lora_config(self._case.tuning) if isinstance(self._case.tuning, Lora) else None

    def sft(self) -> Timed:
        from trl import SFTConfig, SFTTrainer

        extra = {"train_sampling_strategy": "group_by_length"} if self._tuned else {}
        return self._timed(SFTTrainer, SFTConfig(**self._arguments(), **extra), self._sft)

    def dpo(self) -> Timed:
        from trl import DPOConfig, DPOTrainer

        extra = {"precompute_ref_log_probs": True} if self._tuned else {}
        return self._timed(DPOTrainer, DPOConfig(**self._arguments(), **extra), self._dpo)

    def _timed(self, trainer_class: Any, config: Any, rows: list[Any]) -> Timed:
        from datasets import Dataset
        from transformers import AutoTokenizer, TrainerCallback

        clock, spent = Clock(), [0.0]

        class Ticking(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                wait()
                clock.tick(state.global_step)

        class Watched(trainer_class):
            def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
                began = time.perf_counter()
                try:
                    return super()._precompute_ref_logps(*given, **named)
                finally:
                    spent[0] += time.perf_counter() - began

        with memory() as peak:
            began = time.perf_counter()
            trainer = Watched(
                model=self._model(),
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=AutoTokenizer.from_pretrained(self._folder / "base"),
                peft_config=self._lora(),
                callbacks=[Ticking()],
            )
            trainer.train()
            timed = Timed(clock.step_s(), time.perf_counter() - began, peak(), spent[0])
        trainer.accelerator.free_memory()
        return timed


def wait() -> None:
    import torch

    if on_gpu():
        torch.cuda.synchronize()


def messages(record: Any) -> list[dict[str, str]]:
    return [t.as_message() for t in record.messages]


def said(reply: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply}]
