"""One arm as a script of its own, as an expert would write it with TRL and vLLM: the peer of `benchmarks.grid`.

    python -m benchmarks.grid_script --base FOLDER --sft FILE [--dpo FILE] --test FILE --out FOLDER --settings JSON

The base is loaded, SFT trains a LoRA adapter, DPO (if wanted) goes on from it with the SFT adapter as reference, and
vLLM answers the test prompts. Gradient checkpointing, which TRL turns on by default, is off: the model is small.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def arguments(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": settings["batch_examples"],
        "num_train_epochs": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "max_length": settings["max_length"],
        "gradient_checkpointing": False,
        "bf16": settings["precision"] == "bf16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def train(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Train and save the adapter under `out`/adapter. The losses of each step, by objective."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    tokenizer.chat_template = settings["template"]
    lora = LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer: Any = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.base),
        args=SFTConfig(**arguments(options.out, settings["sft"])),
        train_dataset=Dataset.from_list(rows(options.sft)),
        processing_class=tokenizer,
        peft_config=lora,
    )
    losses = {"sft": run(trainer)}
    if options.dpo:
        trainer = DPOTrainer(
            model=trainer.model,  # TRL takes a frozen copy of the adapter as the reference
            args=DPOConfig(**arguments(options.out, settings["dpo"]), beta=settings["dpo"]["beta"]),
            train_dataset=Dataset.from_list(rows(options.dpo)),
            processing_class=tokenizer,
        )
        losses["dpo"] = run(trainer)
    trainer.model.save_pretrained(options.out / "adapter", selected_adapters=["default"])
    return losses


def run(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def answer(options: argparse.Namespace, settings: dict[str, Any]) -> list[str]:
    """Greedy replies to the test prompts through vLLM."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        options.base,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[settings["sft"]["precision"]],
        max_model_len=settings["sft"]["max_length"],
        kv_cache_memory_bytes=settings["kv_cache_bytes"],
        enable_lora=True,
        max_lora_rank=max(8, settings["rank"]),
    )
    said = engine.chat(
        [row["prompt"] for row in rows(options.test)],
        SamplingParams(temperature=0.0, max_tokens=settings["max_tokens"]),
        chat_template=settings["template"],
        lora_request=LoRARequest("arm", 1, str(options.out / "adapter")),
        use_tqdm=False,
    )
    return [reply.outputs[0].text for reply in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    for name in ("sft", "dpo", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=name != "dpo")
    parser.add_argument("--settings", type=json.loads, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    losses = train(options, options.settings)
    replies = answer(options, options.settings)
    (options.out / "result.json").write_text(json.dumps({"losses": losses, "replies": replies}))


if __name__ == "__main__":
    main()
    os._exit(0)  # vLLM's threads abort some ends of the interpreter
