"""Training against formulas written out by hand, and against itself cut up in other ways."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from empathy.records import Demonstration, Logprob, Preference
from empathy.specs import Dpo, Full, LogprobsSpec, Lora, Sft
from empathy.stages import Stage
from empathy.store import Store
from empathy.train import session
from empathy.train.placement import Placement
from tests.lessons import (
    chain,
    copy_of,
    demonstrations,
    examples,
    losses,
    optimiser,
    preferences,
    raised,
    scored,
    tuned,
    weights,
)

HERE = Placement(device="cpu", threads=1)
CLOSE = 1e-5
"""Equal but for the order in which float32 sums are taken."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("training") / "store"))


@pytest.fixture(scope="module")
def made(store: Store) -> list[Stage]:
    """base, sft, reference, dpo with LoRA, in one process."""
    stages = chain(store)
    session.run(stages, store, HERE)
    return stages


def loaded(store: Store, checkpoint: Stage, folder: Path):  # type: ignore[no-untyped-def]
    """(model, tokenizer) of a checkpoint, by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = checkpoint.inputs.get("base", checkpoint)
    home = store.get(base).download(folder / base.key)
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    if base is not checkpoint:
        model = PeftModel.from_pretrained(
            model, str(store.get(checkpoint).download(folder / checkpoint.key) / "adapter")
        )
    return model.eval(), AutoTokenizer.from_pretrained(home / "tokenizer")


def reply_logprobs(model, tokenizer, prompt: str, reply: str):  # type: ignore[no-untyped-def]
    """log p of each reply token and of the end token; the chat is written out by hand."""
    import torch

    before = tokenizer(f"<|user|>\n{prompt}\n<|assistant|>\n").input_ids
    ids = before + tokenizer(f"{reply}<|end|>").input_ids
    logp_TV = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return torch.stack([logp_TV[t - 1, ids[t]] for t in range(len(before), len(ids))])


def first_batch(store: Store, stage: Stage, records: list) -> list:
    """The records of the first step."""
    from empathy.train import order

    spec = stage.spec.objective.optimiser
    return [records[i] for i in order.batches(len(records), spec.batch_examples, spec.epochs, stage.spec.seed)[0]]


def test_first_sft_loss_is_the_cross_entropy_of_the_reply_tokens(
    store: Store, made: list[Stage], tmp_path: Path
) -> None:
    base, sft, *_ = made
    model, tokenizer = loaded(store, base, tmp_path)
    shown = first_batch(store, sft, list(store.get(sft.inputs["examples"]).read(Demonstration)))
    logps = [x.item() for e in shown for x in reply_logprobs(model, tokenizer, e.messages[0].content, e.reply)]
    assert losses(store, sft)[0] == pytest.approx(-sum(logps) / len(logps), abs=CLOSE)


def test_scores_are_sums_over_reply_and_end_token(store: Store, made: list[Stage], tmp_path: Path) -> None:
    _, sft, reference, _ = made
    model, tokenizer = loaded(store, sft, tmp_path)
    found = {(s.example_id, s.side): s for s in store.get(reference).read(Logprob)}
    pairs = list(store.get(reference.inputs["examples"]).read(Preference))
    assert len(found) == 2 * len(pairs)
    for pair in pairs[:6]:
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            logps = reply_logprobs(model, tokenizer, pair.messages[0].content, text)
            assert found[pair.id, side].tokens == len(logps)
            assert found[pair.id, side].logprob_nats == pytest.approx(logps.sum().item(), abs=1e-4)


def test_dpo_loss_is_the_published_formula(store: Store, made: list[Stage], tmp_path: Path) -> None:
    """Rafailov et al. 2023, eq. 7, at the policy that one step has made: the loss that a run of two steps has at its
    second.
    """
    import torch
    from torch.nn.functional import logsigmoid

    base, sft, *_ = made
    pairs = preferences(8, 5)
    over, beta = examples(store, "dpo", pairs), 0.5
    reference = scored(sft, over)
    inputs = {"base": base, "policy": sft, "examples": over, "reference": reference}
    once, twice = (
        tuned(Dpo(optimiser=optimiser(epochs=epochs, schedule="constant"), tuning=Lora(), beta=beta), inputs)
        for epochs in (1, 2)
    )
    session.run([reference, once, twice], store, HERE)
    (policy, tokenizer), (frozen, _) = loaded(store, once, tmp_path), loaded(store, sft, tmp_path)
    margins = []
    with torch.no_grad():
        for pair in pairs:
            ratio = {}
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                ours, theirs = (
                    reply_logprobs(m, tokenizer, pair.messages[0].content, text).sum() for m in (policy, frozen)
                )
                ratio[side] = ours - theirs
            margins.append(beta * (ratio["chosen"] - ratio["rejected"]))
    expected = -logsigmoid(torch.stack(margins)).mean().item()
    assert losses(store, once)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(expected - math.log(2)) > 1e-3, "the step must have moved the policy, or this proves nothing"
    assert losses(store, twice)[1] == pytest.approx(expected, abs=CLOSE)


def test_dpo_starts_at_ln2_from_policy_and_from_base(store: Store, made: list[Stage]) -> None:
    base, _, reference, dpo = made
    from_base = scored(base, reference.inputs["examples"])
    alone = tuned(dpo.spec.objective, {"base": base, "examples": dpo.inputs["examples"], "reference": from_base})
    session.run([from_base, alone], store, HERE)
    for stage in (dpo, alone):
        start = store.get(stage).meta["proofs"]["dpo_start"]
        assert start["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert start["margin"] == pytest.approx(0, abs=1e-4)


def test_in_bf16_the_reference_is_not_rounded(store: Store, made: list[Stage]) -> None:
    """What transformers does to whatever is no integer under DeepSpeed: a sum of -200.4 nats would be -200."""
    base, _, reference, dpo = made
    spec = LogprobsSpec(precision="bf16", max_length_tokens=256)
    scores = Stage(spec, {"checkpoint": base, "examples": reference.inputs["examples"]})
    inputs = {"base": base, "examples": dpo.inputs["examples"], "reference": scores}
    stage = tuned(dpo.spec.objective, inputs, precision="bf16")
    session.run([scores, stage], store, HERE)
    start = store.get(stage).meta["proofs"]["dpo_start"]
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert start["margin"] == pytest.approx(0, abs=2e-4)


def test_dpo_on_another_models_reference_is_refused(store: Store, made: list[Stage], tmp_path: Path) -> None:
    """A reference that was tampered with: the scores of the base under the key of the policy's."""
    from empathy.columns import from_table

    base, _, reference, dpo = made
    from_base = scored(base, reference.inputs["examples"])
    session.run([from_base], store, HERE)
    other = copy_of(store, tmp_path / "store")
    for stage in (dpo, reference):
        for path in other.files.list(f"{stage.kind}/{stage.key}", recursive=True):
            other.files.delete(path)
    writer = other.writer(reference)
    for k in range(len(store.get(from_base).parts)):
        writer.write_records(k, from_table(store.get(from_base).table(k), Logprob), Logprob)
    writer.commit()
    with pytest.raises(ValueError, match=r"not at ln 2 .* reference log-probabilities are not those of the policy"):
        session.run([dpo], other, HERE)
    assert not other.done(dpo)


@pytest.mark.parametrize(
    "placement",
    [
        Placement(device="cpu", threads=1, micro_batch=2),
        Placement(device="cpu", threads=1, zero_stage=0),
        Placement(device="cpu", threads=1, zero_stage=1),
        Placement(device="cpu", threads=1, zero_stage=3, micro_batch=4),
        Placement(device="cpu", threads=1, gradient_checkpointing=True),
        Placement(device="cpu", threads=1, share_prefixes=False),
    ],
    ids=["micro-batches", "zero-0", "zero-1", "zero-3", "gradient-checkpointing", "row-by-row"],
)
def test_placement_changes_no_loss(store: Store, made: list[Stage], placement: Placement, tmp_path: Path) -> None:
    _, sft, _, dpo = made
    other = copy_of(store, tmp_path / "store")
    for stage in (sft, dpo):
        other.files.delete(f"{stage.kind}/{stage.key}/artifact.json")
    session.run([sft, dpo], other, placement)
    for stage in (sft, dpo):
        assert losses(other, stage) == pytest.approx(losses(store, stage), abs=CLOSE), stage


def test_full_tuning_runs_the_same_chain(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    stages = chain(store, Full(), number=16)
    session.run(stages, store, HERE)
    base, sft, _, dpo = stages
    assert losses(store, dpo)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert "model/model.safetensors" in store.get(sft).files
    assert weights(store, base) != weights(store, sft) != weights(store, dpo)


def test_an_arm_trained_again_after_others_is_the_same(store: Store, made: list[Stage], tmp_path: Path) -> None:
    """The resident base is not changed by the arms that were trained on it."""
    _, sft, *_ = made
    other = copy_of(store, tmp_path / "store")
    other.files.delete(f"{sft.kind}/{sft.key}/artifact.json")
    extra = tuned(Sft(optimiser=optimiser(learning_rate=1e-2), tuning=Lora(rank=4)), dict(sft.inputs))
    session.run([extra, sft], other, HERE)
    assert losses(other, sft) == losses(store, sft)
    assert weights(other, sft) == weights(store, sft)


def test_what_is_saved_is_alive_and_travels_with_its_template(store: Store, made: list[Stage]) -> None:
    from empathy import templates

    _, sft, _, dpo = made
    for stage in (sft, dpo):
        artifact = store.get(stage)
        adapter = artifact.meta["proofs"]["adapter"]
        assert adapter["keys"] == 2 * adapter["b_matrices"] == 2 * 2 * 7  # A and B of 7 linear layers in 2 blocks
        assert adapter["b_not_zero"] == adapter["b_matrices"]
        assert artifact.read_file("template.jinja").decode() == templates.load("plain")
        assert artifact.meta["stop_ids"] == [1]  # <|end|>
        assert not [name for name in artifact.files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_too_long_examples_are_dropped_and_counted_never_cut(store: Store, made: list[Stage], tmp_path: Path) -> None:
    base, *_ = made
    _, tokenizer = loaded(store, base, tmp_path)
    shown = demonstrations(16, 9)
    chats = [f"<|user|>\n{e.messages[0].content}\n<|assistant|>\n{e.reply}<|end|>" for e in shown]
    lengths = sorted(len(tokenizer(chat).input_ids) for chat in chats)
    limit = lengths[10]
    inputs = {"base": base, "examples": examples(store, "sft", shown)}
    short = tuned(Sft(optimiser=optimiser(), tuning=Lora()), inputs, max_length_tokens=limit)
    session.run([short], store, HERE)
    meta = store.get(short).meta
    assert meta["counts"]["too_long"] == sum(length > limit for length in lengths) > 0
    assert meta["examples"] == sum(length <= limit for length in lengths)
    none = tuned(Sft(optimiser=optimiser(), tuning=Lora()), inputs, max_length_tokens=8)
    with pytest.raises(ValueError, match="16 examples, of which none is within max_length_tokens = 8"):
        session.run([none], store, HERE)


def test_a_training_broken_off_resumes_to_the_same_weights(store: Store, made: list[Stage], tmp_path: Path) -> None:
    """Broken off after step 5 of 6 with checkpoints at 2 and 4; step 4's is then damaged, and a half one lies about:
    2 is used.
    """
    base, *_ = made
    shown = examples(store, "sft", demonstrations(24, 2))
    stage = tuned(Sft(optimiser=optimiser(epochs=2), tuning=Lora()), {"base": base, "examples": shown})
    saving = Placement(device="cpu", threads=1, save_every_steps=2)
    session.run([stage], store, saving)
    other = copy_of(store, tmp_path / "store")
    other.files.delete(f"{stage.kind}/{stage.key}/artifact.json")
    seen: list[int] = []

    def break_off(_: Stage, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 1:
            return
        raise KeyboardInterrupt

    import empathy.train.watch as watch

    watch.REPORT_EVERY_S, before = 0.0, watch.REPORT_EVERY_S
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run([stage], other, saving, lambda s, d, t: break_off(s, d, t) if d in (1, 5) else None)
        saved = [p for p in other.files.list(f"progress/{stage.key}") if p.endswith(".json")]
        assert [int(Path(p).name[:8]) for p in saved] == [2, 4]
        shard = next(p for p in other.files.list(saved[1].removesuffix(".json"), recursive=True) if "optim_states" in p)
        data = bytearray(other.files.read(shard))
        data[len(data) // 2] ^= 1
        other.files.write(shard, bytes(data))
        other.files.write(f"progress/{stage.key}/00000005-half/latest", b"global_step5")
        resumed: list[int] = []
        session.run([stage], other, saving, lambda s, d, t: resumed.append(d))
    finally:
        watch.REPORT_EVERY_S = before
    assert resumed[:2] == [2, 3]  # what was saved is told before the first step
    assert losses(other, stage) == losses(store, stage)
    assert weights(other, stage) == weights(store, stage)
    assert not other.files.list(f"progress/{stage.key}", recursive=True)


def test_progress_of_another_zero_stage_is_refused_with_the_remedy(
    store: Store, made: list[Stage], tmp_path: Path
) -> None:
    from empathy.train.group import join, own_environment
    from empathy.train.progress import Progress

    with own_environment():
        group = join(HERE)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "state").write_bytes(b"x")
        Progress(store.files, "k", group, {"workers": 1, "zero_stage": 2}).put(tmp_path / "run", 3)
        with pytest.raises(ValueError, match=r"'zero_stage': 2.*run with those again, or delete"):
            Progress(store.files, "k", group, {"workers": 1, "zero_stage": 1}).newest(tmp_path / "other")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_no_number_stops_the_training(store: Store, made: list[Stage], precision: str) -> None:
    base, *_ = made
    wild = tuned(
        Sft(optimiser=optimiser(learning_rate=1e30, epochs=2, schedule="constant"), tuning=Full()),
        {"base": base, "examples": examples(store, "sft", demonstrations(24, 2))},
        precision=precision,
    )
    with pytest.raises(FloatingPointError, match=r"(loss|grad_norm) is (nan|inf) at step \d.*learning_rate"):
        session.run([wild], store, HERE)
    assert not store.done(wild)


def test_a_session_alone_goes_without_cudnns_attention_which_plans_for_every_shape(store: Store) -> None:
    import torch

    with session.opened(store, HERE):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_raising_a_base_is_the_same_in_another_store(store: Store, made: list[Stage], tmp_path: Path) -> None:
    other = Store.open(str(tmp_path / "store"))
    base = raised(other)
    session.run([base], other, HERE)
    assert base.key == made[0].key
    assert weights(other, base) == weights(store, made[0])
    assert store.get(base).read_file("tokenizer/tokenizer.json") == other.get(base).read_file(
        "tokenizer/tokenizer.json"
    )


TAKEN_OUT = """
import sys
import torch.distributed as dist
from empathy.store import Store
from empathy.train import session
from empathy.train.group import GroupBroken
from empathy.train.placement import Placement
from tests.lessons import raised

store = Store.open(sys.argv[1])
base = raised(store)
with session.opened(store, Placement(device="cpu", threads=1)) as making:
    dist.destroy_process_group()
    for what in (lambda: making.make(base), lambda: making.group.from_first(0)):
        try:
            what()
        except GroupBroken as error:
            print(error)
"""


def test_a_rank_that_is_taken_out_of_its_group_blames_no_stage(tmp_path: Path) -> None:
    """As Ray does to those that outlive a lost rank. torch says it with a ValueError, which a stage would fail with."""
    words = [sys.executable, "-c", TAKEN_OUT, str(tmp_path / "store")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["the group of processes was ended: one of its ranks was lost"] * 2, done.stderr
