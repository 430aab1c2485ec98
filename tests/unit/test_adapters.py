"""Adapters and templates as files: what is refused before an engine loads anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from empathy.specs import Lora
from serving.adapters import RANKS, read_adapter, weights_sha256
from serving.students import PROBES, StudentSet, renderer, rendering_sha256
from tests.tiny import TEMPLATE, tiny_adapter, tiny_set


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> StudentSet:
    return tiny_set(tmp_path_factory.mktemp("students"))


@pytest.fixture
def copied(students: StudentSet, tmp_path: Path) -> Path:
    return tiny_adapter(Path(students.base), tmp_path / "adapter", seed=4)


def _rewrite(adapter: Path, change: Callable[[str], str]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({change(key): tensor for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def test_a_good_adapter_is_read(students: StudentSet, copied: Path) -> None:
    adapter = read_adapter("good", copied, Path(students.base))
    assert adapter.rank == 8
    assert len(adapter.shapes) == 4 * 7  # layers x linear layers
    assert adapter.shapes["model.layers.0.self_attn.k_proj"] == (128, 64)  # 2 KV heads of 32
    (copied / "base.json").write_text(json.dumps({"weights_sha256": weights_sha256(Path(students.base))}))
    assert read_adapter("good", copied, Path(students.base)) == adapter


def test_an_adapter_with_other_keys_is_refused(students: StudentSet, copied: Path) -> None:
    _rewrite(copied, lambda key: key.replace("model.layers", "model.decoder.layers"))
    with pytest.raises(ValueError, match=r"adapter 'odd'.*fits no linear layer"):
        read_adapter("odd", copied, Path(students.base))


def test_a_rank_that_vllm_does_not_take_is_refused(students: StudentSet, copied: Path) -> None:
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"r": 513}))
    with pytest.raises(ValueError, match=r"adapter 'wide'.*rank 513 is over vLLM's greatest, 512: train it with a low"):
        read_adapter("wide", copied, Path(students.base))


def test_a_base_that_has_changed_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    before = weights_sha256(tmp_path)
    file.write_bytes(b"three")
    assert weights_sha256(tmp_path) != before


def test_an_adapter_of_another_base_is_refused(students: StudentSet, copied: Path) -> None:
    (copied / "base.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"adapter 'stray'.*trained on a base with weights 000000000000"):
        read_adapter("stray", copied, Path(students.base))


def test_an_adapter_whose_b_is_zero_is_refused(students: StudentSet, copied: Path) -> None:
    file = copied / "adapter_model.safetensors"
    zeroed = {key: tensor * (0 if "lora_B" in key else 1) for key, tensor in load_file(file).items()}
    save_file(zeroed, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter 'idle'.*every B is zero"):
        read_adapter("idle", copied, Path(students.base))


def test_half_an_adapter_is_refused(students: StudentSet, copied: Path) -> None:
    file = copied / "adapter_model.safetensors"
    lost = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    save_file({key: tensor for key, tensor in load_file(file).items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter 'half'.*not whole.*layers\.1\.mlp\.up_proj"):
        read_adapter("half", copied, Path(students.base))


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.PT", "optimizer.pkl"])
def test_a_pickle_in_a_model_folder_is_refused(students: StudentSet, copied: Path, name: str) -> None:
    (copied / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"adapter 'risky'.*{name}"):
        read_adapter("risky", copied, Path(students.base))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused(students: StudentSet, copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    with pytest.raises(ValueError, match=rf"adapter 'gone'.*{missing}"):
        read_adapter("gone", copied, Path(students.base))


def test_the_probes_tell_templates_apart(students: StudentSet) -> None:
    templates = [
        TEMPLATE,
        TEMPLATE.replace("{{ eos_token }}", ""),
        TEMPLATE.replace("'|>' +", "'|> ' +"),
        TEMPLATE + " ",
    ]
    hashes = {rendering_sha256(renderer(students.base, template)) for template in templates}
    assert len(hashes) == len(templates)
    assert len(PROBES) == 4


def test_a_base_without_a_name_is_no_model(students: StudentSet) -> None:
    unnamed = StudentSet(students.base, TEMPLATE, students.adapters, base_name=None)
    assert unnamed.names == ("kind", "wise")
    with pytest.raises(ValueError, match="not served here; choose one of kind, wise"):
        unnamed.check_name("base")
    with pytest.raises(ValueError, match="nothing is served"):
        StudentSet(students.base, TEMPLATE, base_name=None)


def test_the_widest_adapter_that_may_be_trained_is_the_widest_that_is_served() -> None:
    assert Lora(rank=RANKS[-1]).rank == 512
    with pytest.raises(ValueError, match="less than or equal to 512"):
        Lora(rank=RANKS[-1] + 1)
