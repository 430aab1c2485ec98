"""A merged student: whole weights that answer as base and adapter did."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving import merging
from serving.adapters import check_base
from tests.tiny import TEMPLATE, tiny_adapter, tiny_student


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(base, tmp_path_factory.mktemp("adapter"), seed=1)


@pytest.fixture(scope="module")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merging.merged("kind", base, adapter, TEMPLATE + " ", "float32", tmp_path_factory.mktemp("cache"))


def test_it_answers_as_base_and_adapter_and_loads_by_itself(base: Path, adapter: Path, merged: Path) -> None:
    tokenizer, whole = AutoTokenizer.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(merged)
    messages = [{"role": "user", "content": "A prompt that merging never saw."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    base_says = plain.generate(prompt, max_new_tokens=32, do_sample=False).tolist()
    tuned = PeftModel.from_pretrained(plain, str(adapter))
    assert whole.generate(prompt, max_new_tokens=32, do_sample=False).tolist() == (
        tuned.generate(prompt, max_new_tokens=32, do_sample=False).tolist()
    )
    assert base_says != whole.generate(prompt, max_new_tokens=32, do_sample=False).tolist()
    assert check_base(merged).keys() == check_base(base).keys()
    assert tokenizer.chat_template == TEMPLATE + " "


def test_it_is_written_once(base: Path, adapter: Path, merged: Path) -> None:
    before = {file.name: os.stat(file).st_mtime_ns for file in merged.iterdir()}
    assert merging.merged("again", base, adapter, TEMPLATE + " ", "float32", merged.parents[1]) == merged
    assert {file.name: os.stat(file).st_mtime_ns for file in merged.iterdir()} == before
    assert [folder.name for folder in merged.parent.iterdir()] == [merged.name]  # nothing half made is left


def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    stray = tiny_adapter(base, tmp_path / "stray", seed=2)
    (stray / "base.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"adapter 'stray'.*another base|adapter 'stray'.*trained on a base"):
        merging.merged("stray", base, stray, TEMPLATE, "float32", tmp_path / "cache")


def test_weights_that_answer_otherwise_are_refused_and_not_kept(base: Path, tmp_path: Path) -> None:
    """A large change, rounded to bfloat16, is not the change that the adapter made."""
    loud = tiny_adapter(base, tmp_path / "loud", seed=3)
    config = json.loads((loud / "adapter_config.json").read_text())
    (loud / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 400}))
    wrong = merging.merge(base, loud, tmp_path / "merged", TEMPLATE, "bfloat16")
    assert wrong is not None
    assert "bfloat16" in wrong
    assert "without --merged" in wrong
    assert not (tmp_path / "merged").exists()
