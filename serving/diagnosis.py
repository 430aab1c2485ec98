"""Why an engine does not start, in words that help: vLLM raises "see root cause above", and the cause is in its log.

Its worker process writes there what it died of; Ray keeps what a replica and its children print in a file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PROFILE = "(a profile's table [engine] has these fields)"
NO_MEMORY = (
    f"too little memory is free: lower kv_cache_gib or replicas {PROFILE}, or end what else holds the device's memory"
)
# Patterns of vLLM 0.29's messages -> what a user can do. `lasting`: starting again would end the same way.
KNOWN: tuple[tuple[str, str, bool], ...] = (
    (
        r"max seq len \((?P<length>\d+)\), \((?P<gib>[\d.]+) GiB KV cache is needed"
        r"(?:.*estimated maximum model length is (?P<fits>\d+))?",
        f"kv_cache_gib is too small: one reply of max_model_len = {{length}} tokens needs {{gib}} GiB; raise it, or "
        f"lower max_model_len (at most {{fits}} fit now) {PROFILE}",
        True,
    ),
    (
        r"max_model_len \((?P<length>\d+)\) is greater than .*?(?P<positions>\d+)",
        f"max_model_len = {{length}}: the model has {{positions}} positions; lower it {PROFILE}",
        True,
    ),
    (
        r"Unsupported CPU attention configuration: head_dim=(?P<width>\d+)",
        "heads of {width} numbers: on a CPU vLLM computes with 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 512; "
        "choose hidden / heads of the student so",
        True,
    ),
    (r"Available memory on node|Free memory on device|No available memory for the cache", NO_MEMORY, False),
    (r"OutOfMemoryError|out of memory|can't allocate memory|bad_alloc|Cannot allocate memory", NO_MEMORY, False),
    (r"Failed core proc\(s\): \{[^}]*: -9\b", f"its process was killed: {NO_MEMORY}", False),
)  # fmt: skip
_PREFIX = r"^(?:\(EngineCore[^)]*\) )?(?:ERROR [^\]]*\] )?"
_RAISED = re.compile(rf"{_PREFIX}((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE)
_ASSERTED = re.compile(rf"{_PREFIX} +(assert .+)\n(?:{_PREFIX}[ ^~]+\n)?{_PREFIX}(AssertionError)$", re.MULTILINE)
"""An assertion without words: the line that failed is all there is to say."""
_LASTING = ("ModuleNotFoundError", "ImportError", "AssertionError")
"""Of causes that are not known: what is missing, or not meant to be, will be so again."""
_VAGUE = ("Engine core initialization failed", "EngineCore encountered an issue", "EngineDeadError")


class EngineFailed(RuntimeError):
    """A replica could not start its engine. The message is one line: Serve hands on its text, not the exception."""


@dataclass(frozen=True)
class Diagnosis:
    """`text`: one line for people. `lasting`: starting again would end the same way."""

    text: str
    lasting: bool


def diagnose(error: Exception, log: str) -> Diagnosis:
    """The reason and, where it is a known one, the remedy. `log`: what the engine printed since it began to start."""
    causes = [cause for cause in _RAISED.findall(log) if not any(vague in cause for vague in _VAGUE)]
    said = "\n".join([*causes, str(error)])
    for pattern, remedy, lasting in KNOWN:
        if found := re.search(pattern, said):
            named = {name: value or "fewer" for name, value in found.groupdict().items()}
            return Diagnosis(remedy.format(**named), lasting)
    if isinstance(error, ValueError):  # ours, or vLLM's word on an option: it names what it is about
        return Diagnosis(_line(str(error)), lasting=True)
    causes += [f"{kind}: {line}" for line, kind in _ASSERTED.findall(log)]
    first = [cause for cause in causes if cause.startswith(_LASTING)]  # what comes after it came of it
    said = _line(first[0] if first else causes[-1] if causes else f"{type(error).__name__}: {error}".rstrip(": "))
    return Diagnosis(said, lasting=said.startswith(_LASTING))


def _line(text: str) -> str:
    return " ".join(text.split())


def told(message: str) -> str | None:
    """The text of the last `EngineFailed` in a traceback, None when it holds none."""
    found = re.findall(rf"{EngineFailed.__name__}: (.+)", message)
    return found[-1] if found else None


class OwnLog:
    """What this process and its children print from now on, where standard output is a file (as in Ray's workers)."""

    def __init__(self) -> None:
        path = Path(os.readlink("/proc/self/fd/1")) if Path("/proc/self/fd/1").exists() else Path()
        self._path = path if path.is_file() else None
        self._from = path.stat().st_size if self._path else 0

    def text(self) -> str:
        """Empty where standard output is no file."""
        if self._path is None:
            return ""
        with self._path.open("rb") as stream:
            stream.seek(self._from)
            return stream.read().decode(errors="replace")
