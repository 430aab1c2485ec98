"""What training does about memory on a CPU."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from empathy.train.group import keep_freed_memory

if sys.argv[1:] == ["kept"]:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def step():
    blocks = [libc.malloc(20 << 20) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 20 << 20)
    for block in blocks:
        libc.free(block)

step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS, *kept], capture_output=True, text=True, check=True).stdout)
        for kept in ([], ["kept"])
    ]
    assert faults[0] > 1000, "glibc by itself gives it back"
    assert faults[1] < 100
