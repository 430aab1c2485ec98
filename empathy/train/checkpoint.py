"""Makes one checkpoint stage: renders its examples, trains, proves, saves, commits."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from empathy.records import Demonstration, Logprob, Preference
from empathy.specs import Dpo, HubBase, Sft
from empathy.stages import Stage
from empathy.train import save, sharing, watch
from empathy.train.base import tokenizer_and_template
from empathy.train.bench import Bench, adapter_of, base_of, checkpoint_spec
from empathy.train.group import tell_accelerate
from empathy.train.placement import cut
from empathy.train.progress import Progress
from empathy.train.starts import load_policy_adapter, lora_config, starting_model
from empathy.train.tokens import Renderer, demonstration_rows, preference_rows, proof
from empathy.train.trainers import Plan, PlannedDpo, PlannedSft, arguments


def make(stage: Stage, bench: Bench) -> None:
    """Make `stage`. Every rank calls this."""
    spec = checkpoint_spec(stage)
    renderer = Renderer(*tokenizer_and_template(stage, bench)) if spec.base else bench.renderer(stage)
    if spec.objective is None:
        _commit_untrained(stage, bench, renderer)
    else:
        _train(stage, bench, renderer)


def _commit_untrained(stage: Stage, bench: Bench, renderer: Renderer) -> None:
    spec = checkpoint_spec(stage)
    if not bench.group.first:
        return
    if isinstance(spec.base, HubBase):
        pointer = {"model": spec.base.model, "revision": spec.base.revision, "digest": spec.base.digest}
        save.commit(stage, bench, renderer, None, {"pointer": pointer})
    else:
        folder = bench.scratch / f"weights-{stage.key}" / "model"
        starting_model(stage, bench, renderer).save_pretrained(folder)
        save.commit(stage, bench, renderer, folder, {})


@dataclass
class Set:
    """Rendered examples, as columns for a trainer. `counts`: what was dropped."""

    columns: dict[str, list[Any]]
    lengths: list[int]
    token_proof: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)


def _train(stage: Stage, bench: Bench, renderer: Renderer) -> None:
    started = time.monotonic()
    spec = checkpoint_spec(stage)
    objective = spec.objective
    assert objective is not None
    rows = _sft_set(stage, bench, renderer) if isinstance(objective, Sft) else _dpo_set(stage, bench, renderer)
    cutting = cut(objective.optimiser.batch_examples, bench.placement, bench.group.world)
    plan = Plan.of(rows.lengths, objective.optimiser, spec.seed, cutting, bench.group.rank)
    with _trainer(stage, bench, renderer, rows, plan) as trainer:
        expected = _trained_shapes(trainer.model)
        _run(trainer, stage, bench)
        trained_s = time.monotonic() - started
        folder = bench.scratch / f"weights-{stage.key}" / ("adapter" if adapter_of(stage) else "model")
        save.write_weights(trainer, folder, _base_name(stage))
        if bench.group.first:
            meta = _meta(trainer, rows, plan) | {"seconds": round(trained_s, 2)}
            meta["proofs"] = _proofs(stage, bench, folder, expected, meta)
            save.commit(stage, bench, renderer, folder, meta)
            trainer.progress.clear()


def _sft_set(stage: Stage, bench: Bench, renderer: Renderer) -> Set:
    examples = list(bench.artifact(stage.inputs["examples"]).read(Demonstration))
    rows = demonstration_rows(renderer, examples)
    kept = [row for row in rows if len(row) <= checkpoint_spec(stage).max_length_tokens]
    _refuse_empty(stage, len(rows), len(kept))
    columns = {"input_ids": [row.ids for row in kept], "labels": [row.labels for row in kept]}
    return Set(columns, [len(row) for row in kept], proof(examples, rows), {"too_long": len(rows) - len(kept)})


def _dpo_set(stage: Stage, bench: Bench, renderer: Renderer) -> Set:
    pairs = list(bench.artifact(stage.inputs["examples"]).read(Preference))
    rows = preference_rows(renderer, pairs)
    longest = [max(len(chosen), len(rejected)) for chosen, rejected in rows]
    keep = [i for i, length in enumerate(longest) if length <= checkpoint_spec(stage).max_length_tokens]
    _refuse_empty(stage, len(rows), len(keep))
    reference = {(r.example_id, r.side): r for r in bench.artifact(stage.inputs["reference"]).read(Logprob)}
    columns: dict[str, list[Any]] = {
        "prompt_ids": [list(rows[i][0].prompt) for i in keep],
        "chosen_ids": [list(rows[i][0].reply) for i in keep],
        "rejected_ids": [list(rows[i][1].reply) for i in keep],
    }
    for side, which in (("chosen", 0), ("rejected", 1)):
        columns[f"ref_{side}_logps"] = [
            _reference(reference, pairs[i].id, side, len(rows[i][which].reply)) for i in keep
        ]
    counts = {"too_long": len(rows) - len(keep)}
    return Set(columns, [longest[i] for i in keep], proof(pairs, [chosen for chosen, _ in rows]), counts)


def _reference(table: dict[tuple[str, Any], Logprob], example_id: str, side: str, tokens: int) -> float:
    found = table.get((example_id, side))
    if found is None or found.tokens != tokens:
        got = "none" if found is None else f"one over {found.tokens} tokens"
        raise ValueError(
            f"reference: pair {example_id!r} needs a log-probability of its {side} reply ({tokens} tokens), "
            f"there is {got}: make the "
            "reference over these examples with this template, and with a max_length_tokens at least the training's"
        )
    return found.logprob_nats


def _refuse_empty(stage: Stage, found: int, kept: int) -> None:
    if kept == 0:
        raise ValueError(
            f"{stage!r}: {found} examples, of which none is within max_length_tokens = "
            f"{checkpoint_spec(stage).max_length_tokens}: raise "
            "it, or look at the stage `examples`"
        )


@contextlib.contextmanager
def _trainer(stage: Stage, bench: Bench, renderer: Renderer, rows: Set, plan: Plan) -> Iterator[Any]:
    """A TRL trainer, ready to run. Afterwards the resident base is as it was."""
    from datasets import Dataset
    from trl import DPOConfig, SFTConfig

    spec, objective = checkpoint_spec(stage), checkpoint_spec(stage).objective
    assert objective is not None
    tell_accelerate()
    given = arguments(spec, objective.optimiser, plan, bench, str(bench.scratch / f"run-{stage.key}"))
    if isinstance(objective, Dpo):
        config = DPOConfig(**given, beta=objective.beta, loss_type="sigmoid", precompute_ref_log_probs=True)
    else:
        config = SFTConfig(**given, dataset_kwargs={"skip_prepare_dataset": True})
    lora = adapter_of(stage)
    model = starting_model(stage, bench, renderer)  # after the config: ZeRO-3 reads it while it loads
    if bench.placement.share_prefixes and bench.placement.zero_stage < 3:  # ZeRO-3 brings weights module by module
        sharing.install(model)
    trainer = (PlannedDpo if isinstance(objective, Dpo) else PlannedSft)(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(rows.columns),
        processing_class=renderer.tokenizer,
        peft_config=lora_config(lora) if lora else None,
        callbacks=[watch.Watch(stage, bench, plan.steps, spec.precision, isinstance(objective, Dpo))],
    )
    _silence(trainer)
    if lora and "policy" in stage.inputs:
        load_policy_adapter(trainer.model, stage.inputs["policy"], bench)
    shape = {"workers": bench.group.world, "zero_stage": bench.placement.zero_stage}
    trainer.plan, trainer.progress = plan, Progress(bench.store.files, stage.key, bench.group, shape)
    try:
        yield trainer
    finally:
        _let_go(trainer, model)


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _let_go(trainer: Any, model: Any) -> None:
    from peft import PeftModel

    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        engine.destroy()
    if isinstance(trainer.model, PeftModel):
        trainer.model.unload()
    vars(model).pop("forward", None)  # TRL's fused head, of this trainer alone
    trainer.accelerator.free_memory()
    gc.collect()


def _run(trainer: Any, stage: Stage, bench: Bench) -> None:
    """Train, from the last step that was saved; that step is reported before any other."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    target = Path(trainer.args.output_dir)
    resumed = trainer.progress.newest(target)
    if bench.group.first:
        bench.report(stage, int(resumed.name.rpartition("-")[2]) if resumed else 0, trainer.plan.steps)
    try:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        unset_hf_deepspeed_config()


def _trained_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Key -> shape of what will be saved; taken before ZeRO-3 cuts anything up."""
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        return {
            key: tuple(tensor.shape)
            for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
    named = [*model.named_parameters(), *model.named_buffers()]
    return {key: tuple(getattr(tensor, "ds_shape", tensor.shape)) for key, tensor in named}


def _base_name(stage: Stage) -> str:
    if checkpoint_spec(stage).base:
        return ""
    base = checkpoint_spec(base_of(stage)).base
    return base.model if isinstance(base, HubBase) else f"checkpoint/{base_of(stage).key}"


def _meta(trainer: Any, rows: Set, plan: Plan) -> dict[str, Any]:
    return {
        "steps": plan.steps,
        "examples": len(rows.lengths),
        "tokens": plan.tokens(),
        "counts": rows.counts,
        "series": watch.series(trainer.state.log_history),
        "token_proof": rows.token_proof,
        "trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad
        ),
    }


def _proofs(
    stage: Stage, bench: Bench, folder: Path, expected: dict[str, tuple[int, ...]], meta: dict[str, Any]
) -> dict[str, Any]:
    proofs: dict[str, Any] = {}
    if adapter_of(stage):
        proofs["adapter"] = save.reread_adapter(folder, expected)
        proofs["base_weights_sha256"] = bench.weights_sha256(base_of(stage))
    else:
        proofs["model"] = save.reread_model(folder, expected)
    if isinstance(checkpoint_spec(stage).objective, Dpo):
        proofs["dpo_start"] = {"loss": meta["series"]["loss"][0], "margin": meta["series"]["margin"][0]}
    return proofs
