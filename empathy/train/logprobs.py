"""What a checkpoint gives to the replies in a set of examples: DPO's reference, held-out likelihood, preference
accuracy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from empathy.records import Demonstration, Logprob, Preference, Side
from empathy.specs import ExamplesSpec, LogprobsSpec
from empathy.stages import Stage
from empathy.train import sharing
from empathy.train.bench import Bench, adapter_of, base_of
from empathy.train.save import versions
from empathy.train.tokens import Renderer, Row, demonstration_rows, preference_rows

Item = tuple[str, Side, Row]


def make(stage: Stage, bench: Bench) -> None:
    """Make a logprobs stage: part k scores the examples of part k. Every rank calls this; rows are shared out over
    the ranks.
    """
    assert isinstance(stage.spec, LogprobsSpec), stage
    spec, examples = stage.spec, bench.artifact(stage.inputs["examples"])
    renderer = bench.renderer(stage.inputs["checkpoint"])
    writer = bench.writer(stage) if bench.group.first else None
    finished = bench.group.from_first(set(writer.finished_parts()) if writer else set())
    with scoring_model(stage.inputs["checkpoint"], bench, spec.precision) as model:
        done = sum(examples.parts[part].rows or 0 for part in finished)
        if bench.group.first:
            bench.report(stage, done, examples.rows)
        for part in sorted(set(range(len(examples.parts))) - finished):
            found = items(
                stage.inputs["examples"], list(examples.read(_record(stage.inputs["examples"]), part)), renderer
            )
            kept = [item for item in found if len(item[2]) <= spec.max_length_tokens]
            scored = _shared_scores(model, kept, renderer, bench)
            if writer:
                writer.write_records(part, scored, Logprob, {"too_long": len(found) - len(kept)})
            done += examples.parts[part].rows or 0
            if bench.group.first:
                bench.report(stage, done, examples.rows)
    if writer:
        writer.commit(meta={"versions": versions()}, made={"placement": bench.placement.as_json()})


def _record(examples: Stage) -> Any:
    assert isinstance(examples.spec, ExamplesSpec), examples
    return Demonstration if examples.spec.objective == "sft" else Preference


def items(examples: Stage, records: Sequence[Any], renderer: Renderer) -> list[Item]:
    """Every reply of these examples: one a demonstration, two a pair."""
    if _record(examples) is Demonstration:
        return [(r.id, "reply", row) for r, row in zip(records, demonstration_rows(renderer, records), strict=True)]
    pairs = zip(records, preference_rows(renderer, records), strict=True)
    return [
        item for r, (chosen, rejected) in pairs for item in ((r.id, "chosen", chosen), (r.id, "rejected", rejected))
    ]


@contextlib.contextmanager
def scoring_model(checkpoint: Stage, bench: Bench, precision: str) -> Iterator[Any]:
    """The checkpoint's model in evaluation; adapters sit on the resident base while they are needed."""
    if adapter_of(checkpoint) is None:
        full = bench.base_model(checkpoint, precision)
        if bench.placement.share_prefixes:
            sharing.install(full)
        yield full.to(bench.group.device).eval()
        return
    from peft import PeftModel

    base = bench.base_model(base_of(checkpoint), precision)
    if bench.placement.share_prefixes:
        sharing.install(base)
    model = PeftModel.from_pretrained(base, str(bench.folder(checkpoint) / "adapter"), autocast_adapter_dtype=False)
    try:
        yield model.to(bench.group.device).eval()
    finally:
        model.unload()


def batches(items: Sequence[Item], padded_tokens: int) -> list[list[int]]:
    """Item numbers in batches of similar length, each of at most `padded_tokens` tokens with padding (or one item).

    The two replies of a pair stay together: what they share is read once.
    """
    longest: dict[str, int] = {}
    for ident, _, row in items:
        longest[ident] = max(len(row), longest.get(ident, 0))
    made: list[list[int]] = []
    widest = 0
    for i in sorted(range(len(items)), key=lambda i: (-longest[items[i][0]], items[i][0], i)):
        if made and (len(made[-1]) + 1) * widest <= padded_tokens:
            made[-1].append(i)
        else:
            made.append([i])
            widest = longest[items[i][0]]
    return made


def _shared_scores(model: Any, kept: Sequence[Item], renderer: Renderer, bench: Bench) -> list[Logprob]:
    """Scores of all items, in their order, on every rank; each rank has computed its share."""
    cut = batches(kept, bench.placement.score_tokens)
    mine = cut[bench.group.rank :: bench.group.world]
    scores = {
        i: s for batch in mine for i, s in zip(batch, score(model, [kept[i][2] for i in batch], renderer), strict=True)
    }
    everyone = {i: s for share in bench.group.from_all(scores) for i, s in share.items()}
    return [Logprob(ident, side, everyone[i], len(row.reply)) for i, (ident, side, row) in enumerate(kept)]


def score(model: Any, rows: Sequence[Row], renderer: Renderer) -> list[float]:
    """Sum over each reply's tokens, end token included, of log p(token | what precedes it), in nats; summed in
    float32.
    """
    import torch

    longest, first = max(len(r) for r in rows), min(len(r.prompt) for r in rows)
    pad = renderer.tokenizer.pad_token_id
    ids_BT = torch.tensor([r.ids + [pad] * (longest - len(r)) for r in rows], device=model.device)
    there_BT = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=model.device)
    said_BR = torch.tensor(
        [[len(r.prompt) <= t < len(r) for t in range(first, longest)] for r in rows], device=model.device
    )
    with torch.inference_mode():
        logits_BRV = model(
            input_ids=ids_BT, attention_mask=there_BT, use_cache=False, logits_to_keep=longest - first + 1
        ).logits
    logp_BRV = logits_BRV[:, :-1].float().log_softmax(-1)
    logp_BR = logp_BRV.gather(-1, ids_BT[:, first:, None]).squeeze(-1)
    sums: list[float] = logp_BR.masked_fill(~said_BR, 0.0).sum(-1).tolist()
    return sums
