"""A student as a folder that transformers and vLLM load by themselves, with a README that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cluster import profile as profiles
from cluster.weights import Weights, fetch, merge
from empathy import experiment
from empathy.experiment import Experiment
from empathy.lower import lower
from empathy.specs import CheckpointSpec, HubBase
from empathy.stages import Stage
from jobs.serve import chosen
from serving.adapters import BASE_RECORD
from serving.gateway import DISCLOSURE

NOT_OURS = {BASE_RECORD, "README.md"}


def export(name: str, file: str, on: str | None, store_url: str | None, to: str, as_merged: bool) -> int:
    """Write student `name` into the new folder `to`. Raises ValueError for an unknown student, and a folder that is not
    empty."""
    target = Path(to).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--to {to}: is there already and not empty; name a new folder")
    profile = profiles.load(on, store_url)
    store = profile.open_store()
    x = experiment.load(file)
    stage = chosen([name], lower(x), store, file, on)[name]
    cache = Path(profile.cache).expanduser()
    weights = fetch(stage, store, cache)
    if as_merged:
        weights = merge(name, weights, x.train.precision, cache)
    _write(name, stage, weights, target, x)
    print(target)
    return 0


def _write(name: str, stage: Stage, weights: Weights, target: Path, x: Experiment) -> None:
    target.mkdir(parents=True, exist_ok=True)
    base = _hub_name(stage)
    if weights.adapter is None:
        _copy(weights.base, target)
    else:
        _copy(weights.adapter, target)
        if base is None:  # made here: nobody else has it
            _copy(weights.base, target / "base")
            (target / "base" / "chat_template.jinja").write_text(weights.template)
        config = json.loads((target / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base or "base"
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "chat_template.jinja").write_text(weights.template)
    (target / "README.md").write_text(card(name, stage, weights, base, x))


def _copy(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in NOT_OURS:
            shutil.copy(file, target / file.name)


def _hub_name(stage: Stage) -> str | None:
    """The hub's name of the model that a student was tuned from; None for one that was made here, or is a folder."""
    while "base" in stage.inputs:
        stage = stage.inputs["base"]
    assert isinstance(stage.spec, CheckpointSpec)
    spec = stage.spec.base
    return spec.model if isinstance(spec, HubBase) and spec.digest is None else None


def card(name: str, stage: Stage, weights: Weights, base: str | None, x: Experiment) -> str:
    """The README: a model card."""
    whole = weights.adapter is None
    return CARD.format(
        base_model=f"base_model: {base}\n" if base else "",
        name=name,
        experiment=x.name,
        question=x.question,
        key=stage.key,
        base=base or "a model made by the same experiment",
        base_key=weights.base_key,
        holds="whole weights" if whole else "a LoRA adapter",
        load=LOAD_WHOLE if whole else LOAD_ADAPTER.format(base=base or "./base"),
        differs=x.differs or "nothing was noted",
        disclosure=DISCLOSURE,
    )


LOAD_WHOLE = "`vllm serve .`, or `AutoModelForCausalLM.from_pretrained('.')`"
LOAD_ADAPTER = (
    "`vllm serve {base} --enable-lora --lora-modules NAME=. --chat-template chat_template.jinja`, or "
    "`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), '.')`"
)
CARD = """---
library_name: transformers
license: other
pipeline_tag: text-generation
{base_model}tags: [empathy, distillation]
---
# {name}

A small language model, tuned to answer with more empathy by the experiment `{experiment}`: {question}

| | |
|---|---|
| checkpoint | `{key}` |
| tuned from | {base} (`{base_key}`) |
| holds | {holds} |
| load | {load} |
| prompts | must be rendered with `chat_template.jinja` of this folder, as in training |
| differs from the reference work | {differs} |

## It is an AI

Tell people so before its first reply: "{disclosure}"

It has no crisis checks of its own, and clinicians have not reviewed it: for research, not for people in distress.

## Licence

The licence of the model it was tuned from applies, and so do the terms of the data it learned from and of the models
whose replies those are. Many such data sets are for non-commercial research alone: look before you share.
"""
