"""What is said of an engine that does not start: vLLM's own words in, a reason and a remedy out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.diagnosis import EngineFailed, diagnose, told

VAGUE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
WORKER = "(EngineCore pid=27898) ERROR 11-22 09:51:30 [core.py:1374]"
KV_CACHE = f"""INFO 11-22 09:51:29 [cpu_worker.py:200] graph capture may need more than is free, out of memory is handled
{WORKER} Traceback (most recent call last):
{WORKER}     raise ValueError(
{WORKER} ValueError: To serve at least one request with the model's max seq len (4096), (0.01 GiB KV cache is needed, which is larger than the available KV cache memory (0.0 GiB). Based on the available memory, the estimated maximum model length is 896. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
ERROR 11-22 09:51:30 [async_llm.py:819] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""  # noqa: E501 (as vLLM 0.29 prints it)


ASSERTED = f"""{WORKER}   File "/venv/vllm/lora/ops/triton_ops/lora_expand_op.py", line 183, in _lora_expand
{WORKER}     assert weight.dtype in [torch.float16, torch.bfloat16]
{WORKER}            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
{WORKER} AssertionError
INFO 11-22 17:06:30 [utils.py:620] [shutdown] Process manager: send sigterm to process EngineCore
"""  # as vLLM 0.29 printed it on a GPU


@pytest.mark.parametrize(
    ("error", "log", "said", "lasting"),
    [
        (VAGUE, KV_CACHE, ["kv_cache_gib", "max_model_len = 4096", "0.01 GiB", "at most 896", "[engine]"], True),
        (
            VAGUE,
            f"{WORKER} RuntimeError: Unsupported CPU attention configuration: head_dim=12 isa=1 kv_cache_idx=0\n",
            ["heads of 12 numbers", "hidden / heads"],
            True,
        ),
        (
            ValueError(
                "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (100000) is greater "
                "than the derived max_model_len (max_position_embeddings=4096.0 or model_max_length=None in config)"
            ),
            "",
            ["max_model_len = 100000", "4096 positions"],
            True,
        ),
        (
            VAGUE,
            f"{WORKER} ValueError: Available memory on node 0 (16.77/18.96 GiB) on kv cache allocation is less than "
            "requested memory for kv (4000.0 GiB).\n",
            ["too little memory", "kv_cache_gib"],
            False,
        ),
        (
            RuntimeError("Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}"),
            "",
            ["killed", "memory"],
            False,
        ),
        (VAGUE, f"{WORKER} torch.cuda.OutOfMemoryError: CUDA out of memory.\n", ["too little memory"], False),
        (VAGUE, f"{WORKER} KeyError: 'rope_theta'\n", ["KeyError: 'rope_theta'"], False),
        (VAGUE, ASSERTED, ["AssertionError: assert weight.dtype in [torch.float16, torch.bfloat16]"], True),
        (VAGUE, f"{WORKER} ModuleNotFoundError: No module named 'torchvision'\n", ["'torchvision'"], True),
        (
            VAGUE,
            f"{WORKER} ModuleNotFoundError: No module named 'x'\n{WORKER} RuntimeError: see root cause above\n",
            ["ModuleNotFoundError: No module named 'x'"],
            True,
        ),
        (AssertionError(), "", ["AssertionError"], True),
        (VAGUE, "", ["Engine core initialization failed"], False),
        (ValueError("adapter 'a' changes nothing"), "", ["adapter 'a' changes nothing"], True),
    ],
)
def test_the_reason_and_the_remedy(error: Exception, log: str, said: list[str], lasting: bool) -> None:
    found = diagnose(error, log)
    assert [part for part in said if part not in found.text] == []
    assert found.lasting is lasting
    assert "\n" not in found.text


def test_its_line_is_found_in_what_serve_hands_on() -> None:
    """As Serve does: the end of a traceback of a traceback."""
    script = "from serving.diagnosis import EngineFailed\ntry:\n    1 / 0\nexcept Exception as e:\n    raise EngineFailed('why: it') from e"  # noqa: E501
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert told(f"RuntimeError: {process.stderr}") == "why: it"
    assert told("RuntimeError: something else") is None
    assert issubclass(EngineFailed, RuntimeError)


def test_the_log_of_a_process_and_its_children_is_read_from_where_it_began(tmp_path: Path) -> None:
    script = (
        "import os, sys; from serving.diagnosis import OwnLog; print('before', flush=True); log = OwnLog(); "
        "os.system('echo from a child'); sys.stderr.write(log.text())"
    )
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr == "from a child\n"
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert piped.stderr == ""
