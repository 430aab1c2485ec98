"""What a profile takes of this machine's GPUs, with a nvidia-smi of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import gpus
from cluster.profile import Profile
from cluster.steps.training import placement_of
from jobs.estimate.memory import held_gib

ONE = "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04'"
PROFILE = Profile.model_validate({"train": {"workers": 2, "gpus_per_worker": 1}, "engine": {"gpus": 1}})


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_run_that_wants_more_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, ONE)
    with pytest.raises(
        ValueError, match=r"gpus_per_worker = 1 \(workers = 2\).*take 2 GPUs of this machine, which has 1"
    ):
        gpus.check(PROFILE, {"training", "asking"})
    gpus.check(PROFILE, {"generating"})
    gpus.check(PROFILE, {"asking"})
    gpus.check(Profile(), {"training", "generating"})


def test_a_cluster_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    gpus.check(PROFILE, {"training"})


def test_what_nvidia_smi_says_instead_of_a_list_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert gpus.found() == gpus.Found(
        why="nvidia-smi ends with 18: Failed to initialize NVML: Driver/library version mismatch"
    )
    with pytest.raises(ValueError, match=r"which has 0 \(nvidia-smi ends with 18: .*version mismatch\)"):
        gpus.check(PROFILE, {"training"})


def test_a_driver_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(gpus, "ANSWER_S", 0.2)
    assert "does not answer within 0.2 s" in gpus.found().why


@pytest.mark.parametrize(("number", "fits"), [(0.5, True), (1, True), (2, True), (1.5, False)])
def test_an_engine_takes_a_share_of_one_gpu_or_whole_ones(number: float, fits: bool) -> None:
    if fits:
        assert Profile.model_validate({"engine": {"gpus": number}}).engine.gpus == number
        return
    with pytest.raises(ValueError, match="a share of one GPU"):
        Profile.model_validate({"engine": {"gpus": number}})


def test_a_training_worker_takes_a_gpu_or_a_share_of_one_of_its_own() -> None:
    beside = Profile.model_validate({"train": {"workers": 1, "gpus_per_worker": 0.5}, "engine": {"gpus": 0.5}})
    assert placement_of(beside).gpu_share == 0.5
    assert gpus.wanted(beside) == 0.5
    assert placement_of(PROFILE).gpu_share == placement_of(Profile()).gpu_share == 1
    with pytest.raises(ValueError, match=r"gpus_per_worker = 0.5 with workers = 2: .* set workers = 1"):
        Profile.model_validate({"train": {"workers": 2, "gpus_per_worker": 0.5}})
    with pytest.raises(ValueError, match=r"less than or equal to 1"):
        Profile.model_validate({"train": {"gpus_per_worker": 2}})


@pytest.mark.parametrize(
    ("groups", "of_the_engine", "gib"), [(1, 0.5, 5), (2, 0.5, 7), (8, 0.5, 7), (2, 1, 4), (8, 1, 8)]
)
def test_groups_that_share_a_gpu_hold_a_copy_of_the_base_each(groups: int, of_the_engine: float, gib: float) -> None:
    """2 GiB of weights and 1 of KV cache; an engine that has the GPU for itself does not stand beside a training."""
    train = {"workers": 1, "groups": groups, "gpus_per_worker": 0.25}
    profile = Profile.model_validate({"train": train, "engine": {"gpus": of_the_engine, "kv_cache_gib": 1}})
    assert held_gib(2.0, profile, gpus=1) == gib
