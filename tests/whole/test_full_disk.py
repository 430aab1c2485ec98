"""A disk that is full in the middle of things, and then has room again: a small one in memory, which root may mount."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from empathy import experiment
from empathy.lower import lower
from empathy.specs import RepliesSpec, Teacher
from empathy.stages import Stage, walk
from empathy.store import Store
from empathy.train import launch
from empathy.train.placement import Placement
from serving.ledger import Ledger
from serving.scripted import Faults, Scripted
from tests.cluster import empathy
from tests.experiments import tiny_file
from tests.lessons import chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PLACEMENT = Placement(workers=2, device="cpu", threads=1)
IN_FLIGHT = 4
PROFILE = f"""
[ask]
workers   = 0
in_flight = {IN_FLIGHT}
[providers.scripted]
base_url = "{{url}}"
"""


@contextmanager
def disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of its own in `folder`. Skips the test where none may be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system may be mounted here ({error})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(folder: Path, size_kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_kib}k", str(folder)], check=True)


def test_replies_on_a_disk_that_fills(tmp_path: Path) -> None:
    """What was kept is not asked again; what was on its way when the disk was full is at most what was in flight."""
    file, profile = tiny_file(tmp_path, n=400), tmp_path / "profile.toml"
    text = file.read_text().replace('"embedded"\nmodel           =', '"scripted"\nmodel           =')
    file.write_text(text.replace("part_rows = 8", "part_rows = 400"))
    asked = next(s for s in walk([lower(experiment.load(file)).report]) if isinstance(responder(s), Teacher))
    with Scripted(Faults(latency_s=0.01)) as server, disk(tmp_path / "disk", 20_000) as store:
        profile.write_text(PROFILE.format(url=server.url))

        def run(until: str) -> subprocess.CompletedProcess[str]:
            return empathy("run", file, "--on", profile, "--store", store, "--until", until, cwd=tmp_path)

        assert run("dialogues").returncode == 0
        grow(store, used_kib(store) + 120)
        broken = run(f"replies/{asked.key}")
        assert f"No space left on device: '{store}/" in broken.stderr
        assert "Traceback" not in broken.stderr
        paid = server.counts()["total"]
        assert 0 < paid < 400, "it was full in the middle"
        refused = run(f"replies/{asked.key}")
        assert (refused.returncode, "make room there" in refused.stderr) == (2, True)
        assert server.counts()["total"] == paid, "nothing is bought for a full disk"
        grow(store, 20_000)
        with Ledger(Store.open(str(store)).files) as ledger:
            kept = len(ledger)
        assert paid - kept <= IN_FLIGHT
        assert run(f"replies/{asked.key}").returncode == 0
        assert server.counts()["total"] == 400 + paid - kept


def responder(stage: Stage) -> object:
    return stage.spec.responder if isinstance(stage.spec, RepliesSpec) else None


@pytest.mark.long
def test_a_training_that_does_not_fit_is_its_stages_failure_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error that is not a stage's own would have the workers start again, and train it again."""
    with disk(tmp_path / "disk", 20_000) as folder:
        store = Store.open(str(folder))
        stages = chain(store, epochs=1)
        base, sft = stages[:2]
        launch.run([base], store.url, {}, PLACEMENT)
        grow(folder, used_kib(folder) + 40)
        with pytest.raises(RuntimeError, match="ended with exit code"):
            launch.run([sft], store.url, {}, PLACEMENT)
        assert re.search(rf"ValueError: .*No space left on device: '{folder}/.*make room there", capfd.readouterr().err)
        assert left_of(store, sft) == []
        grow(folder, 20_000)
        launch.run([sft], store.url, {}, PLACEMENT)
        assert store.done(sft)


def used_kib(folder: Path) -> int:
    said = subprocess.run(["df", "-k", "--output=used", str(folder)], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[1])


def left_of(store: Store, stage: Stage) -> list[str]:
    """Files that no manifest will name."""
    return store.files.list(f"{stage.kind}/{stage.key}/files", recursive=True)
