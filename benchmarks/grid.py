"""A grid of LoRA arms of one tiny base: through one run, as single experiments, and as plain TRL + vLLM scripts.

    python -m benchmarks.grid [--quick] [--alone N]

On a machine with a GPU all three compute on it, in bf16; the grid trains and answers on one GPU side by side.
Twelve arms: six lessons (the teacher's own replies, and five strategies that rewrite the human's), each by SFT and by
SFT + DPO. All three ways read the same base from a folder and use the same settings and all cores.

- grid: one `empathy run` down to the report; teacher and judge are asked by the driver, as suits one small machine.
  Two groups of one training worker train arms side by side, on half of the cores each.
- singles: each arm is an experiment of its own with a store of its own, one after another, its training worker on all
  cores. Nothing is shared but the base's folder and the page cache: a store that is shared would be the grid, made
  slowly.
- scripts: each arm is a process of `benchmarks.grid_script`. It is given its training sets and asks no teacher and no
  judge, scores nothing held out and writes no report: what it leaves out is in its favour. Its threads spin while they
  wait, as libgomp's do by default, which is fast where nothing else runs, and slow elsewhere: measure on a quiet
  machine. (Those of `empathy run` sleep.)

--alone N measures N arms of the singles and of the scripts (as many SFT as SFT + DPO) and scales them to all: the table
says so. --quick: four arms, of which two are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import report
from cluster import gpus
from empathy import experiment, templates
from empathy.lower import Cell, lower
from empathy.records import Demonstration, Dialogue, Preference
from empathy.specs import RandomBase
from empathy.store import Store

STRATEGIES = ("", "naive", "all_three", "cognitive", "affective", "sequential")
REGIMES = ("sft", "sft+dpo")
RANK, ALPHA, MAX_LENGTH, MAX_TOKENS = 8, 16, 384, 48
SFT = {"learning_rate": 1e-3, "epochs": 3, "batch_examples": 16}
DPO = {"learning_rate": 1e-4, "epochs": 3, "batch_examples": 16, "beta": 0.1}
KV_GIB = 0.5
GROUPS = 2
SHAPE = RandomBase(vocab=1024, hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, positions=512)
PROFILE = """
[ask]
workers     = 0
[train]
workers     = 1
groups      = {groups}
micro_batch = 16
{gpu}
[engine]
kv_cache_gib  = {kv_gib}
max_model_len = {max_length}
max_num_seqs  = 256
{half}
"""


@dataclass(frozen=True)
class Arm:
    """One student: a strategy ("" is the teacher's own reply) and a regime."""

    strategy: str
    regime: str


def toml(base: Path, strategies: Sequence[str], regimes: Sequence[str]) -> str:
    """The experiment over these arms."""

    def table(values: dict[str, Any]) -> str:
        return "{ " + ", ".join(f"{name} = {value}" for name, value in values.items()) + " }"

    arms = ['[[arms]]\nmethod = "direct"'] if "" in strategies else []
    if rewriting := [s for s in strategies if s]:
        arms.append(f'[[arms]]\nmethod = "improve_human"\nstrategy = {json.dumps(rewriting)}')
    return f"""
name     = "grid"
question = "What does a grid cost?"
[data]
source = {{ type = "sample" }}
split  = {{ type = "group", test_fraction = 0.2, seed = 1 }}
[teacher]
provider        = "embedded"
model           = "rule-teacher-1"
unrated_is_good = true
[students.tiny]
model    = "{base}"
template = "plain"
[train]
lora              = {{ rank = {RANK}, alpha = {ALPHA} }}
precision         = "{precision()}"
max_length_tokens = {MAX_LENGTH}
sft = {table(SFT)}
dpo = {table(DPO)}
[generate]
max_tokens = {MAX_TOKENS}
[judge]
provider = "embedded"
models   = ["rule-judge-1"]
{chr(10).join(arms)}
[grid]
regime = {json.dumps(list(regimes))}
"""


def on_gpu() -> bool:
    return bool(gpus.found().names)


def precision() -> str:
    """What all three compute in: vLLM's CUDA kernels take no adapters in float32."""
    return "bf16" if on_gpu() else "fp32"


def make_base(folder: Path) -> Path:
    """A random Llama of one million parameters with a tokenizer of its own."""
    from empathy.train.base import random_model, random_tokenizer

    words = [f"{i}: what can I say about {word}, it is what it is" for i, word in enumerate(dir(statistics) + dir(str))]
    tokenizer = random_tokenizer(words, SHAPE.vocab, SHAPE.positions)
    random_model(SHAPE, tokenizer, 0, "fp32").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Bench:
    """The folder it all happens in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.base = make_base(folder / "base")

    def file(self, name: str, strategies: Sequence[str], regimes: Sequence[str]) -> Path:
        file = self.folder / f"{name}.toml"
        file.write_text(toml(self.base, strategies, regimes))
        return file

    def run(self, file: Path, groups: int) -> float:
        """Seconds of one `empathy run` in a store of its own, with a cache of its own."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        profile = self._profile(groups)
        words = ["-m", "jobs.cli", "run", str(file), "--on", str(profile), "--store", str(file.with_suffix(""))]
        return self._seconds(words, file.with_suffix(".log"))

    def _profile(self, groups: int) -> Path:
        """So many groups of one worker; on a GPU they share one half of it, and the engine has the other."""
        gpu, half = (f"gpus_per_worker = {0.5 / groups}", "gpus = 0.5") if on_gpu() else ("", "")
        folders = f'cache = "{self.folder / "cache"}"\nreports = "{self.folder / "reports"}"\n'
        profile = self.folder / f"profile-{groups}.toml"
        values = {"groups": groups, "gpu": gpu, "half": half, "kv_gib": KV_GIB, "max_length": MAX_LENGTH}
        profile.write_text(folders + PROFILE.format(**values))
        return profile

    def script(self, arm: Arm, cell: Cell, store: Store) -> float:
        """Seconds of one script; its data is written before the clock starts."""
        out = self.folder / f"script-{arm.strategy}-{arm.regime}"
        out.mkdir()
        given = write_data(cell, store, out)
        shared = {"max_length": MAX_LENGTH, "precision": precision()}
        settings = {
            "template": templates.load("plain"),
            "rank": RANK,
            "alpha": ALPHA,
            "sft": {**SFT, **shared},
            "dpo": {**DPO, **shared},
            "max_tokens": MAX_TOKENS,
            "kv_cache_bytes": int(KV_GIB * 2**30),
        }
        words = ["-m", "benchmarks.grid_script", "--base", str(self.base), "--out", str(out)]
        words += [f"--{name}={path}" for name, path in given.items()]
        return self._seconds([*words, "--settings", json.dumps(settings)], out / "log")

    def _seconds(self, words: list[str], log: Path) -> float:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
        began = time.perf_counter()
        with log.open("wb") as out:
            code = subprocess.run(
                [sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if code:
            raise RuntimeError(f"exit {code}: {' '.join(words[:6])}\n{log.read_text()[-3000:]}")
        return time.perf_counter() - began


def write_data(cell: Cell, store: Store, folder: Path) -> dict[str, Path]:
    """The arm's training sets and the test prompts as JSON lines, in TRL's conversational shapes."""
    checkpoint = cell.checkpoint
    sft = checkpoint.inputs.get("policy", checkpoint)
    found: dict[str, list[Any]] = {
        "sft": [
            {"prompt": [t.as_message() for t in e.messages], "completion": said(e.reply)}
            for e in store.get(sft.inputs["examples"]).read(Demonstration)
        ],
        "test": [
            {"prompt": [t.as_message() for t in d.turns]}
            for d in store.get(cell.replies.inputs["dialogues"]).read(Dialogue)
            if d.split == "test"
        ],
    }
    if sft != checkpoint:
        found["dpo"] = [
            {
                "prompt": [t.as_message() for t in p.messages],
                "chosen": said(p.chosen),
                "rejected": said(p.rejected),
            }
            for p in store.get(checkpoint.inputs["examples"]).read(Preference)
        ]
    for name, rows in found.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {name: folder / f"{name}.jsonl" for name in found}


def said(reply: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply}]


def series(cell: Cell, store: Store) -> list[float]:
    losses: list[float] = store.get(cell.checkpoint).meta["series"]["loss"]
    return losses


def measure(bench: Bench, arms: Sequence[Arm], alone: Sequence[Arm]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The grid, then single and script of each arm in `alone`, taking turns."""
    strategies = list(dict.fromkeys(arm.strategy for arm in arms))
    whole = bench.file("grid", strategies, REGIMES)
    grid_s = bench.run(whole, GROUPS)
    store = Store.open(str(bench.folder / "grid"))
    cells = {Arm(c.lesson.strategy or "", c.regime): c for c in lower(experiment.load(whole)).cells}
    singles, scripts, apart, ratios = list[float](), list[float](), list[float](), list[float]()
    for arm in alone:
        file = bench.file(f"single-{arm.strategy}-{arm.regime}", [arm.strategy], [arm.regime])
        singles.append(bench.run(file, 1))
        ours = series(cells[arm], store)
        theirs = series(cells[arm], Store.open(str(file.with_suffix(""))))
        apart.append(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        scripts.append(bench.script(arm, cells[arm], store))
        plain = json.loads((bench.folder / f"script-{arm.strategy}-{arm.regime}/result.json").read_text())["losses"]
        last = len(ours) // 3  # the last epoch of three: scripts see the examples in another order
        ratios.append(
            statistics.mean(plain["dpo" if "dpo" in plain else "sft"][-last:]) / statistics.mean(ours[-last:])
        )
    n = len(arms)
    rows = [
        row("grid", n, n, grid_s),
        row("singles", n, len(alone), sum(singles)),
        row("scripts", n, len(alone), sum(scripts)),
    ]
    return rows, {
        "arms": float(n),
        "ratio_singles": grid_s / rows[1]["seconds"],
        "ratio_scripts": grid_s / rows[2]["seconds"],
        "losses_apart": max(apart),
        "script_loss_ratio": statistics.median(ratios),
    }


def row(what: str, arms: int, measured: int, seconds: float) -> dict[str, Any]:
    """Seconds for all arms: `measured` of them were run, the rest is scaled."""
    return {
        "what": what,
        "arms": arms,
        "measured": measured,
        "seconds": seconds * arms / measured,
        "s_an_arm": seconds / measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four arms, two measured alone")
    parser.add_argument("--alone", type=int, help="how many arms are measured alone (default: all)")
    options = parser.parse_args()
    strategies = STRATEGIES[:2] if options.quick else STRATEGIES
    arms = [Arm(strategy, regime) for strategy in strategies for regime in REGIMES]
    alone = arms[: options.alone or (2 if options.quick else len(arms))]
    with tempfile.TemporaryDirectory(prefix="empathy-grid-") as folder:
        rows, figures = measure(Bench(Path(folder)), arms, alone)
    report("grid", rows, figures, ("torch", "transformers", "trl", "peft", "deepspeed", "ray"))


if __name__ == "__main__":
    main()
