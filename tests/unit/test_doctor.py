"""`empathy doctor FILE` says BAD of what a run would stop at."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from jobs import doctor, plan
from serving.scripted import Scripted
from tests.experiments import tiny_file


def bad(file: Path, capsys: pytest.CaptureFixture[str], profile: str = "") -> dict[str, str]:
    """Name -> what was said of each check of the experiment that failed."""
    on = file.parent / "profile.toml"
    on.write_text(profile)
    doctor.doctor(str(file), str(on), str(file.parent / "store"))
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("BAD").strip().split("  ", 1) for line in lines if line.startswith("BAD")]
    packages = {*doctor.TRIED, "vllm", "vllm for gpus", "torch", "python", "machine", "disk"}  # this machine's
    return {name: said.strip() for name, said in found if name not in packages}


def changed(folder: Path, old: str, new: str) -> Path:
    file = tiny_file(folder)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_a_sound_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bad(tiny_file(tmp_path), capsys) == {}


def test_data_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMPATHY_DATA", raising=False)
    said = bad(changed(tmp_path, f"{tmp_path}/dialogues.jsonl", "${EMPATHY_DATA}/dialogues.jsonl"), capsys)
    assert "EMPATHY_DATA is not set" in said.pop("data")
    assert not said
    said = bad(changed(tmp_path, f"{tmp_path}/raising.jsonl", "nowhere.jsonl"), capsys)
    assert "nowhere.jsonl" in said.pop("data of tiny")
    assert not said


def test_data_that_leaves_nothing_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 24 human replies are Good: there is no pair to learn from. The plan says so too, and nothing was made."""
    file = tiny_file(tmp_path)
    data = tmp_path / "dialogues.jsonl"
    rows = [json.loads(line) | {"ratings": {"human": 3}} for line in data.read_text().splitlines()]
    data.write_text("\n".join(map(json.dumps, rows)))
    said = bad(file, capsys)
    assert list(said) == ["what is learned"]
    told = "dpo train method=direct teacher=rule-teacher-1: of 17 train dialogues method 'direct' selects none for DPO"
    assert told in said["what is learned"]
    with pytest.raises(ValueError, match=told):
        plan.plan(str(file), None, str(tmp_path / "store"))
    assert not (tmp_path / "store" / "dialogues").exists()
    file.write_text(file.read_text().replace('"sft", "sft+dpo"', '"sft"'))
    assert bad(file, capsys) == {}, "held-out pairs may be none"


def test_an_experiment_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bad(changed(tmp_path, "part_rows", "rows_part"), capsys)) == ["experiment"]


def test_a_base_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_file(tmp_path)
    text = file.read_text()
    file.write_text(
        text[: text.index("[students.tiny]")] + '[students.tiny]\nmodel = "./gone"\n' + text[text.index("[train]") :]
    )
    assert bad(file, capsys) == {"base of tiny": "students.tiny.model = './gone': there is no such folder"}


def test_a_provider_is_knocked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = changed(tmp_path, 'provider        = "embedded"', 'provider = "a_long_name_of_ours"')
    place = '[providers.a_long_name_of_ours]\nbase_url = "{}"\n'
    name = "provider a_long_name_of_ours"
    assert "unknown" in bad(file, capsys)[name]
    with Scripted() as server:
        assert bad(file, capsys, place.format(server.url)) == {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert f"{url} does not answer" in bad(file, capsys, place.format(url))[name]
    monkeypatch.delenv("OUR_KEY", raising=False)
    said = bad(file, capsys, place.format(url) + 'key_env = "OUR_KEY"\n')[name]
    assert "OUR_KEY" in said


def with_gpus(folder: Path, *lines: str) -> str:
    """A PATH with a nvidia-smi that lists these."""
    folder.mkdir()
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    smi.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_gpus_that_the_profile_wants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file, two = tiny_file(tmp_path), "[train]\nworkers = 2\ngpus_per_worker = 1\n[engine]\ngpus = 1\n"
    monkeypatch.setenv("PATH", with_gpus(tmp_path / "one", "NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04"))
    said = bad(file, capsys, two)["gpu"]
    assert said.startswith("NVIDIA H100 80GB HBM3, 81559 MiB, driver 580.159.04. The profile")
    assert "want 2 here" in said
    assert "gpu" not in bad(file, capsys, two.replace("workers = 2", "workers = 1"))
    assert "gpu" not in bad(file, capsys, f'[ray]\naddress = "auto"\n{two}')
    assert bad(file, capsys) == {}


LLAMA = '[students.tiny]\nmodel = "meta-llama/Llama-3.1-8B"\n'
WEIGHTS_GIB = (32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336) + 2 * 4096 * 128256) * 2 / 2**30
"""15.0: attention's and the feed-forward block's matrices of 32 layers, embedding and head, in bf16."""
GPU = "NVIDIA X, {} MiB, 580.159.04"


@pytest.mark.parametrize(
    ("ram_gib", "gpu_mib", "profile", "said"),
    [
        (2 * WEIGHTS_GIB + 0.9, None, "", "at least 30.9 GiB of this machine's memory"),  # two copies and 1 GiB of KV
        (2 * WEIGHTS_GIB + 1.1, None, "", None),
        (2 * WEIGHTS_GIB + 0.9, None, "[ray]\ncpus = 2", None),  # no room for an engine beside two workers
        (WEIGHTS_GIB + 0.9, None, "[ray]\ncpus = 2", "at least 16.0 GiB of this machine's memory"),
        (8, None, '[ray]\naddress = "auto"', None),
        (
            8,
            24 * 1024,
            "[train]\nworkers = 1\ngpus_per_worker = 1\n[engine]\ngpus = 1\nkv_cache_gib = 9.1",
            "are taken at once, of 24.0: ",
        ),
        (8, 24 * 1024, "[train]\nworkers = 1\ngpus_per_worker = 1\n[engine]\ngpus = 1\nkv_cache_gib = 8.9", None),
        (
            8,
            24 * 1024,
            "[train]\nworkers = 1\ngpus_per_worker = 0.5\n[engine]\ngpus = 0.5",
            "at least 30.9 GiB of a GPU",
        ),
        (8, "[N/A]", "[train]\nworkers = 1\ngpus_per_worker = 1\n[engine]\ngpus = 1", None),
    ],
)
def test_a_student_that_this_machine_cannot_hold_is_remarked_on(
    ram_gib: float,
    gpu_mib: object,
    profile: str,
    said: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "_memory_gib", lambda: ram_gib)
    if gpu_mib is not None:
        monkeypatch.setenv("PATH", with_gpus(tmp_path / "one", GPU.format(gpu_mib)))
    file = tiny_file(tmp_path)
    text = file.read_text().replace('precision         = "fp32"', 'precision = "bf16"')
    file.write_text(text[: text.index("[students.tiny]")] + LLAMA + text[text.index("[train]") :])
    (on := tmp_path / "profile.toml").write_text(profile)
    doctor.doctor(str(file), str(on), str(tmp_path / "store"))
    notes = [line for line in capsys.readouterr().out.splitlines() if "memory for tiny" in line]
    assert len(notes) == (said is not None)
    assert all(line.startswith("note") and str(said) in line for line in notes)


def test_a_gpu_needs_a_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tiny_file(tmp_path)
    monkeypatch.setenv("PATH", with_gpus(tmp_path / "one", "A, 1 MiB, 2").partition(":")[0])
    assert "gcc missing" in bad(file, capsys, "[engine]\ngpus = 1\n")["compiler"]
    assert bad(file, capsys) == {}
