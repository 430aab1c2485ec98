"""Which tests this machine can run. A folder is a marker: tests/gpu/ needs a GPU, tests/real/ published data sets."""

import os
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}
"""Of this process: a request on its way while a test ends its Ray is tried again for so long, and then Ray ends the
process, without a word and with status 1. After Ray's 60 s that is in the middle of some other test. Commands that are
tested have Ray's own value (`tests.cluster.FOREIGN`)."""


def has_gpu() -> bool:
    """Whether nvidia-smi lists a GPU: the same question `make setup` asks."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and "GPU" in subprocess.run([smi, "-L"], capture_output=True, text=True, check=False).stdout


def unmet_needs() -> dict[str, str]:
    """Marker -> why its tests are skipped here."""
    unmet = {}
    if not has_gpu():
        unmet["gpu"] = "nvidia-smi lists no GPU"
    elif not any(distributions(name="vllm")):
        unmet["gpu"] = "there is a GPU, and the CPU build of vLLM is installed"
    data = os.environ.get("EMPATHY_DATA")
    if not data:
        unmet["real"] = "EMPATHY_DATA is unset (the folder of the published data sets)"
    elif not Path(data).is_dir():
        # A typo must not turn into a green run that read nothing.
        raise pytest.UsageError(f"EMPATHY_DATA names {data!r}, which is no folder; correct or unset it")
    return unmet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unmet = unmet_needs()
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in ("gpu", "real"):
            item.add_marker(folder)
        for marker, reason in unmet.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
