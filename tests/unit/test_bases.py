"""Bases that were not made here are looked at before anybody is paid, and by `empathy doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster import bases
from cluster.profile import Engine, Profile
from empathy.lower import lower
from empathy.stages import walk
from jobs import cli
from tests.experiments import tiny, tiny_file


def model(folder: Path) -> Path:
    """The files of a model with heads 32 wide, as far as they are looked at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 2}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    save_file({"w": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


def check(folder: Path | str, own_template: bool = True, profile: Profile | None = None) -> Path:
    return bases.check_model("students.x.model", str(folder), None, own_template, profile or Profile())


def test_a_sound_model_passes(tmp_path: Path) -> None:
    assert check(model(tmp_path / "m")) == tmp_path / "m"


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def narrow(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 48, "num_attention_heads": 2}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), "there is no config.json"),
        (without("model.safetensors"), "no .safetensors weights"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "may hold pickled code"),
        (without("tokenizer.json"), "there is no tokenizer"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "no chat template"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"chat'), "fetch the model anew"),
        (narrow, "24 wide"),
    ],
)
def test_a_model_that_a_run_could_not_use_is_refused_by_name(
    spoil: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ValueError, match=rf"^students\.x\.model = '{folder}': .*{said}"):
        check(folder)


def test_what_hangs_on_the_profile_and_the_template(tmp_path: Path) -> None:
    narrow(model(tmp_path / "narrow"))
    check(tmp_path / "narrow", profile=Profile(engine=Engine(gpus=1)))
    (model(tmp_path / "bare") / "tokenizer_config.json").unlink()
    check(tmp_path / "bare", own_template=False)
    with pytest.raises(ValueError, match=r"students\.x\.model = '\./none': there is no such folder"):
        check("./none")
    with pytest.raises(ValueError, match=r"students\.x\.model = 'a/b/c'.*check the name, log in.*or download it"):
        check("a/b/c")


def test_only_bases_that_are_loaded_are_looked_at(tmp_path: Path) -> None:
    x = tiny(tmp_path, students={"x": {"model": str(model(tmp_path / "m"))}})
    lowered = lower(x)
    stages = list(walk([lowered.report]))
    assert bases.needed(stages) == [lowered.bases["x"]]
    assert bases.needed([lowered.cells[0].replies]) == [lowered.bases["x"]]
    assert not bases.needed(s for s in stages if s.kind in ("examples", "verdicts", "report"))
    assert not bases.needed(walk([lower(tiny(tmp_path / "random")).report]))


def found(file: Path, base: str) -> str:
    """The experiment with a base that was not made here."""
    text = file.read_text()
    start, end = text.index("[students.tiny]"), text.index("[train]")
    file.write_text(f'{text[:start]}[students.tiny]\nmodel = "{base}"\n{text[end:]}')
    return str(file)


def test_a_run_refuses_it_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = found(tiny_file(tmp_path), str(tmp_path / "gone"))
    assert cli.main(["run", file, "--store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err
    assert f"empathy run: students.tiny.model = '{tmp_path / 'gone'}': there is no such folder" in said
    assert not (tmp_path / "store" / "dialogues").exists()


def test_the_cache_tells_two_trainings_of_one_stage_apart() -> None:
    """One key, two stores: the last bits of what each trained differ, and an adapter belongs to its own base."""
    from types import SimpleNamespace
    from typing import Any

    from cluster.weights import _contents

    def artifact(**files: str) -> Any:
        return SimpleNamespace(files={name: SimpleNamespace(sha256=digest) for name, digest in files.items()})

    assert _contents(artifact(a="1", b="2")) == _contents(artifact(b="2", a="1")) != _contents(artifact(a="1", b="3"))
