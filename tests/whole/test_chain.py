"""The whole chain on real parts: what one `empathy run` leaves behind, and what the other commands make of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.weights import fetch
from empathy.records import Demonstration, Dialogue, Estimate, Logprob, Reply
from empathy.stages import Stage, walk
from tests.cluster import EMPATHY, ROOT, empathy, environment
from tests.whole.conftest import Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

STUDENTS = ("tiny", "tiny-sft-direct-rule-teacher-1", "tiny-sft-dpo-direct-rule-teacher-1")


def test_it_ends_with_a_headline_and_a_report_that_names_the_stand_ins(finished: Finished) -> None:
    *headline, path = finished.done.stdout.rstrip().splitlines()
    assert any("win rate" in line.lower() for line in headline), finished.done.stdout
    page = Path(path)
    assert page == finished.work.folder / "reports" / "tiny" / "report.html"
    text = page.read_text()
    banner = text[text.index("Stand-ins.") :].split("</div>")[0]
    assert "rule-teacher-1" in banner
    assert "rule-judge-1" in banner
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text), "the page must not load anything"


def test_progress_says_which_stage_and_how_many_of_how_many(finished: Finished) -> None:
    assert "31/31" in finished.done.stderr
    assert "made 31 stages" in finished.done.stderr
    assert "Traceback" not in finished.done.stderr


def test_every_stage_of_the_graph_is_in_the_store_and_nothing_else(finished: Finished) -> None:
    wanted = {(s.kind, s.key) for s in walk([finished.work.lowered.report])}
    assert {(a.kind, a.key) for a in finished.work.store.artifacts()} == wanted
    assert len(wanted) == 31


def test_a_second_run_makes_nothing_and_starts_no_ray(finished: Finished) -> None:
    work = finished.work
    before = {a.key: a.manifest["nonce"] for a in work.store.artifacts()}
    code = "import sys; from jobs import cli; status = cli.main(sys.argv[1:]); print('ray' in sys.modules, status)"
    again = subprocess.run(
        [sys.executable, "-c", code, "run", str(work.file), *work.where],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing to make" in again.stderr
    assert again.stdout.splitlines()[-1] == "False 0"
    assert again.stdout.splitlines()[:-1] == finished.done.stdout.splitlines()
    assert {a.key: a.manifest["nonce"] for a in work.store.artifacts()} == before


# ---------------------------------------------------------------- proofs in the artifacts


def checkpoint(finished: Finished, name: str) -> Stage:
    return finished.work.lowered.checkpoints[name]


def test_dpo_after_sft_starts_at_ln_2(finished: Finished) -> None:
    meta = finished.work.store.get(checkpoint(finished, STUDENTS[2])).meta
    assert meta["series"]["loss"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert meta["proofs"]["dpo_start"]["loss"] == meta["series"]["loss"][0]


def test_the_policy_of_dpo_and_its_reference_are_the_sft_checkpoint(finished: Finished) -> None:
    sft, dpo = checkpoint(finished, STUDENTS[1]), checkpoint(finished, STUDENTS[2])
    assert dpo.inputs["policy"].key == sft.key
    assert dpo.inputs["reference"].inputs["checkpoint"].key == sft.key


def test_adapters_are_reread_and_not_zero(finished: Finished) -> None:
    for name in STUDENTS[1:]:
        proof = finished.work.store.get(checkpoint(finished, name)).meta["proofs"]["adapter"]
        assert proof["b_not_zero"] > 0
        assert proof["keys"] == 2 * proof["b_matrices"]


def test_the_template_travels_with_every_checkpoint(finished: Finished) -> None:
    templates = {finished.work.store.get(checkpoint(finished, n)).read_file("template.jinja") for n in STUDENTS}
    assert len(templates) == 1


def test_the_loss_is_over_exactly_the_reply_and_its_end_token(finished: Finished, tmp_path: Path) -> None:
    """Prompts and replies tokenised here, by the template alone: the ids trained on, the tokens scored."""
    from transformers import AutoTokenizer

    store, stage = finished.work.store, checkpoint(finished, STUDENTS[1])
    tokenizer = AutoTokenizer.from_pretrained(fetch(stage, store, tmp_path).base)
    template = store.get(stage).read_file("template.jinja").decode()

    def ids(messages: list[dict[str, str]], **options: bool) -> list[int]:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        return list(tokenizer.encode(text, add_special_tokens=False))

    examples = list(store.get(stage.inputs["examples"]).read(Demonstration))[:8]
    prompts = [ids([t.as_message() for t in e.messages], add_generation_prompt=True) for e in examples]
    replies = [[*tokenizer.encode(e.reply, add_special_tokens=False), tokenizer.eos_token_id] for e in examples]
    whole = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    for e, expected in zip(examples, whole, strict=True):  # what the template writes after the end token is not taught
        said = [*(t.as_message() for t in e.messages), {"role": "assistant", "content": e.reply}]
        assert ids(said)[: len(expected)] == expected
    proof = store.get(stage).meta["token_proof"]
    assert proof == {"example_ids": [e.id for e in examples], "prompt_sha256": digest(prompts), "sha256": digest(whole)}

    heldout = next(s for n, s in finished.work.lowered.report.inputs.items() if n.startswith("a000:nll"))
    texts = {e.id: e.reply for e in store.get(heldout.inputs["examples"]).read(Demonstration)}
    for row in store.get(heldout).read(Logprob):
        assert row.tokens == len(tokenizer.encode(texts[row.example_id], add_special_tokens=False)) + 1


def digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize("name", STUDENTS)
def test_greedy_replies_are_transformers_own(finished: Finished, name: str, tmp_path: Path) -> None:
    """Rendered and generated here with transformers alone, one dialogue at a time, from the weights in the store."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work = finished.work
    weights = fetch(checkpoint(finished, name), work.store, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(weights.base)
    model = AutoModelForCausalLM.from_pretrained(weights.base, dtype=torch.float32)
    if weights.adapter:
        model = PeftModel.from_pretrained(model, str(weights.adapter))
    template = work.store.get(checkpoint(finished, name)).read_file("template.jinja").decode()
    dialogues = {d.id: d for d in work.store.get(work.lowered.report.inputs["dialogues"]).read(Dialogue)}
    replies = {r.dialogue_id: r for r in work.store.get(answers(finished, name)).read(Reply)}
    assert set(replies) == {d.id for d in dialogues.values() if d.split == "test"}
    for reply in replies.values():
        prompt = tokenizer.apply_chat_template(
            [t.as_message() for t in dialogues[reply.dialogue_id].turns],
            chat_template=template,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        generated = model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert list(reply.token_ids) == generated
        said = tokenizer.decode(generated, skip_special_tokens=True)
        assert reply.text.rstrip("\ufffd") == said.rstrip("\ufffd"), "half a character at the end is nobody's text"


def answers(finished: Finished, name: str) -> Stage:
    wanted = checkpoint(finished, name).key
    found = [
        s
        for s in finished.work.lowered.report.inputs.values()
        if s.kind == "replies" and "checkpoint" in s.inputs and s.inputs["checkpoint"].key == wanted
    ]
    assert len({s.key for s in found}) == 1
    return found[0]


def test_adapters_answer_differently_from_their_base(finished: Finished) -> None:
    """What vLLM would hide: a base that answers with HTTP 200 in an adapter's name."""
    scored = {n: score(finished, n) for n in STUDENTS}
    assert len({tuple(s) for s in scored.values()}) == 3


def score(finished: Finished, name: str) -> list[float]:
    wanted = checkpoint(finished, name).key
    stages = [
        s
        for s in finished.work.lowered.report.inputs.values()
        if s.kind == "logprobs" and s.inputs["checkpoint"].key == wanted
    ]
    store = finished.work.store
    return [x for s in stages for x in (row.logprob_nats for row in store.get(s).read(Logprob))]


# ---------------------------------------------------------------- the other commands


def test_report_is_drawn_anew_from_the_store(finished: Finished) -> None:
    work = finished.work
    page = work.folder / "reports" / "tiny" / "report.html"
    before = page.read_text()
    page.unlink()
    again = empathy("report", work.file, *work.where, cwd=work.folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout == finished.done.stdout
    assert page.read_text() == before


def test_plan_has_nothing_to_make(finished: Finished) -> None:
    said = empathy("plan", finished.work.file, *finished.work.where, cwd=finished.work.folder)
    assert "31 stages, 0 to make" in said.stdout


def test_trace_follows_one_dialogue_from_row_to_verdict(finished: Finished) -> None:
    work = finished.work
    dialogue = next(
        d for d in work.store.get(work.lowered.report.inputs["dialogues"]).read(Dialogue) if d.split == "test"
    )
    said = empathy("trace", dialogue.id, work.file, *work.where, cwd=work.folder)
    assert said.returncode == 0, said.stderr
    sections = [line.split()[0] for line in said.stdout.splitlines() if line and not line.startswith(" ")]
    assert sections == ["DIALOGUE", "TEACHERS", "SETS", "STUDENTS"]
    assert dialogue.turns[0].content in said.stdout
    for cell in work.lowered.cells:
        assert f"  {cell.name}: " in said.stdout
    everybody = len(work.lowered.cells) + 1  # and their base
    assert said.stdout.count("rule-judge-1: against ") == everybody
    assert said.stdout.count("held-out reply: -") == everybody
    told = " ".join(said.stdout.split())
    assert re.search(r"against tiny \(base\): (wins|loses|ties) shown first, (wins|loses|ties) shown second", told)


def test_explain_says_how_two_checkpoints_differ(finished: Finished) -> None:
    work = finished.work
    said = empathy("explain", checkpoint(finished, STUDENTS[1]).key, *work.where, cwd=work.folder)
    assert said.returncode == 0, said.stderr
    assert "nearest sibling differs in" in said.stdout
    assert "spec.objective" in said.stdout


def test_estimates_name_the_artifact_they_rest_on(finished: Finished) -> None:
    store, report = finished.work.store, finished.work.lowered.report
    keys = {a.key for a in store.artifacts()}
    estimates = list(store.get(report).read(Estimate))
    assert estimates
    assert {e.key for e in estimates} <= keys


def test_no_lease_is_left_and_no_progress(finished: Finished) -> None:
    """What a run needs while it works is given back (or its stage is committed) or swept away."""
    root = Path(finished.work.url)
    leases = list(root.glob("*/*/lease/*.json"))
    assert leases
    for lease in leases:
        released = (
            json.loads(lease.with_suffix(".beat").read_text())["released"]
            if lease.with_suffix(".beat").exists()
            else False
        )
        assert released or (lease.parent.parent / "artifact.json").exists(), lease
    assert not list(root.glob("progress/*/*.json"))


def test_the_command_is_installed() -> None:
    assert Path(EMPATHY).is_file()
