"""A model of the profile as teacher and judge: served by our own vLLM, asked through the client, kept in the ledger."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import profile as profiles
from cluster import providers
from cluster.steps.asking import Job, ask_all
from empathy import experiment, replies
from empathy.lower import lower
from empathy.records import Reply, Turn
from empathy.requests import Answer, Request
from empathy.stages import Stage, walk
from serving.client import Counts, drive
from serving.ledger import Ledger
from tests.cluster import Work, empathy, profile_file
from tests.experiments import tiny_file
from tests.tiny import tiny_student

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "meta-llama/Any-8B-Instruct"
ENGINE = "[engine]\nmax_model_len = 1024\nmax_num_seqs = 8\nkv_cache_gib = 0.25\n[ask]\nworkers = 0\n"


@dataclass(frozen=True)
class Taught:
    """The teacher's stage of an experiment, the store that it goes into, the profile that serves its model."""

    work: Work
    stage: Stage
    profile: profiles.Profile
    model: Path


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """`empathy run --until replies`, with a folder on this machine as the experiment's meta-llama/..."""
    folder = tmp_path_factory.mktemp("own")
    model = tiny_student(folder / "model")
    file = tiny_file(folder, n=8)
    changed = file.read_text().replace('provider        = "embedded"\nmodel           = "rule-teacher-1"', TEACHER)
    assert TEACHER in changed
    file.write_text(changed)
    profile = profile_file(folder, f'{ENGINE}[providers.own]\nengine = "{model}"\n')
    work = Work(folder, file, profile, str(folder / "store"))
    done = empathy("run", file, *work.where, "--until", "replies", cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]
    (stage,) = [
        s
        for s in walk([lower(experiment.load(file)).report])
        if s.kind == "replies" and providers.asked(s) == ("own", MODEL)
    ]
    return Taught(work, stage, profiles.load(str(profile), work.url), model)


TEACHER = f'provider = "own"\nmodel = "{MODEL}"\nmax_tokens = 24'


def test_the_teachers_replies_are_transformers_greedy_ones(taught: Taught) -> None:
    store = taught.work.store
    said = {r.dialogue_id: r for r in store.get(taught.stage).read(Reply)}
    tokenizer, model = AutoTokenizer.from_pretrained(taught.model), AutoModelForCausalLM.from_pretrained(taught.model)
    asked = dict(replies.askings(taught.stage, store, 0))
    assert len(said) == len(asked) == 8
    for name, asking in asked.items():
        messages = [t.as_message() for t in next(asking).messages]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.inference_mode():
            wanted = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
        reply = said[name.partition("/")[0]]
        assert reply.text == replies.tidy(tokenizer.decode(wanted, skip_special_tokens=True))
        assert (reply.model_served, reply.tokens_in, reply.tokens_out) == (MODEL, prompt.shape[1], len(wanted))


def test_when_the_ledger_holds_the_replies_no_engine_is_started(taught: Taught) -> None:
    store = taught.work.store
    before = list(store.get(taught.stage).read(Reply))
    shutil.rmtree(Path(taught.work.url) / "replies")
    with providers.ready([taught.stage], taught.profile) as places:
        assert places["own"].base_url == providers.NOBODY
        job = Job(taught.stage, Reply, replies.askings, (8,))
        ask_all([job], store, {"own": places["own"]}, 0, 8, lambda stage, done, of: None)
    assert list(store.get(taught.stage).read(Reply)) == before
    assert store.get(taught.stage).counts.get("calls", 0) == 0


def test_a_request_for_json_is_answered_in_json_and_paid_for_once(taught: Taught) -> None:
    def ask(number: int) -> Generator[Request, Answer, Answer]:
        messages = (Turn("user", f"Which reply is better, {number}?"),)
        return (yield Request("own", MODEL, messages, max_tokens=40, json_reply=True))

    async def answers(provider: providers.Provider, ledger: Ledger, counts: Counts) -> dict[str, Answer]:
        askings = [(str(k), ask(k)) for k in range(4)]
        return {name: answer async for name, answer in drive(askings, provider, ledger, counts=counts)}

    own, store = providers.own_model("own", {MODEL}, taught.profile), taught.work.store
    with providers.own_engine(own, taught.profile) as provider:
        counts = Counts()
        with Ledger(store.files) as ledger:
            first = asyncio.run(answers(provider, ledger, counts))
    assert counts.calls == 4
    for answer in first.values():
        assert (answer.refused, answer.model_served) == (None, MODEL)
        assert answer.text.lstrip()[0] in '{["-0123456789tfn'  # a random model writes odd JSON, and seldom ends it
        if answer.finish_reason == "stop":
            json.loads(answer.text)
    again, provider = Counts(), providers.Provider("own", providers.NOBODY)  # the engine is gone, and so is its key
    with Ledger(store.files) as ledger:
        assert asyncio.run(answers(provider, ledger, again)) == first
    assert (again.calls, again.from_ledger) == (0, 4)
