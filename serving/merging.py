"""A LoRA student as weights of its own: its adapter merged into its base, written once under the hash of both.

Merging runs in a process of its own (`python -m serving.merging`), so that its memory is given back. What was written
is read again and must answer fixed prompts greedily as base and adapter do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving.adapters import read_adapter, weights_sha256
from serving.students import PROBES, probe_ids, renderer

REVISION = 1
TOKENS = 24
"""Of each reply that is compared."""
REFUSED = 2
"""Exit status of a merge that was undone; the reason is on standard error."""


def merged(name: str, base: Path, adapter: Path, template: str, dtype: str, cache: Path) -> Path:
    """The folder of the merged model (config, safetensors, tokenizer, template) under `cache`; made when it is not
    there.

    Raises ValueError, naming the student, for an adapter that does not fit its base, and for merged weights that answer
    otherwise than base and adapter.
    """
    read_adapter(name, adapter, base)
    target = cache / "merged" / _key(base, adapter, template, dtype)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as place:
        folder = Path(place) / "model"
        (Path(place) / "template.jinja").write_text(template)
        words = [str(base), str(adapter), str(folder), str(Path(place) / "template.jinja"), dtype]
        done = subprocess.run(
            [sys.executable, "-m", "serving.merging", *words], capture_output=True, text=True, check=False
        )
        if done.returncode == REFUSED:
            raise ValueError(f"student = {name!r}: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            raise RuntimeError(f"merging {name!r} failed (exit {done.returncode}):\n{done.stderr[-4000:]}")
        try:
            os.rename(folder, target)
        except OSError:  # another process was first; its folder is the same
            assert target.is_dir()
    return target


def _key(base: Path, adapter: Path, template: str, dtype: str) -> str:
    config = (adapter / "adapter_config.json").read_text()
    parts = [REVISION, weights_sha256(base), weights_sha256(adapter), config, template, dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Token ids of the greedy reply to each prompt, at most TOKENS."""
    import torch

    replies = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        replies.append(whole[0, len(prompt) :].tolist())
    return replies


def merge(base: Path, adapter: Path, folder: Path, template: str, dtype: str) -> str | None:
    """Write the merged model into `folder` and compare. What is wrong, or None."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True).eval()

    render = renderer(base, template)
    prompts = [ids for ids in (probe_ids(render, probe) for probe in PROBES) if ids is not None]
    tuned = PeftModel.from_pretrained(load(base), str(adapter)).eval()
    wanted = greedy(tuned, prompts)
    tuned.merge_and_unload(safe_merge=True).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    del tuned
    parted = sum(a != b for a, b in zip(greedy(load(folder), prompts), wanted, strict=True))
    if parted:
        shutil.rmtree(folder)
        return (
            f"merged in {dtype} it answers {parted} of {len(prompts)} fixed prompts otherwise than base and adapter "
            "do; use it without --merged"
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "adapter", "folder", "template"):
        parser.add_argument(name, type=Path)
    parser.add_argument("dtype")
    options = parser.parse_args()
    template = options.template.read_text()
    if wrong := merge(options.base, options.adapter, options.folder, template, options.dtype):
        print(wrong, file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
