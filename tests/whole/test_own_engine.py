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
from cluster.steps import here
from cluster.steps.asking import Job, ask_all
from empathy import replies
from empathy.lower import lower
from empathy.records import Reply, Turn
from empathy.requests import Answer, Request
from empathy.stages import Stage, walk
from empathy.store import Store
from serving.client import Counts, drive
from serving.ledger import Ledger
from serving.providers import Provider
from tests.cluster import profile_file
from tests.experiments import tiny
from tests.tiny import tiny_student

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "meta-llama/Any-8B-Instruct"
ENGINE = "[engine]\nmax_model_len = 1024\nmax_num_seqs = 8\nkv_cache_gib = 0.25\n[ask]\nworkers = 0\n"


@dataclass(frozen=True)
class Taught:
    """The teacher's stage of an experiment, made; the store that it is in, the profile that served its model."""

    stage: Stage
    store: Store
    profile: profiles.Profile
    model: Path
    json: dict[str, Answer]
    """Answers to requests for JSON, asked of the same engine."""
    calls: int
    """How many requests those were."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """A folder on this machine as the experiment's meta-llama/..."""
    folder = tmp_path_factory.mktemp("own")
    model = tiny_student(folder / "model")
    teacher = {"provider": "own", "model": MODEL, "max_tokens": 24}
    lowered = lower(tiny(folder, n=8, teacher=teacher))
    (stage,) = [s for s in walk([lowered.report]) if s.kind == "replies" and providers.asked(s) == ("own", MODEL)]
    file = profile_file(folder, f'{ENGINE}[providers.own]\nengine = "{model}"\n')
    profile = profiles.load(str(file), str(folder / "store"))
    store = profile.open_store()
    here.make(stage.inputs["dialogues"], store)
    with providers.ready([stage], profile) as places:
        make(stage, store, places)
        counts = Counts()
        answers = in_json(places["own"], store, counts)
    return Taught(stage, store, profile, model, answers, counts.calls)


def make(stage: Stage, store: Store, places: providers.Places) -> None:
    job = Job(stage, Reply, replies.askings, (8,))
    ask_all([job], store, {"own": places["own"]}, 0, 8, lambda stage, done, of: None)


def in_json(provider: Provider, store: Store, counts: Counts) -> dict[str, Answer]:
    """Four requests for JSON through the ledger."""

    def ask(number: int) -> Generator[Request, Answer, Answer]:
        messages = (Turn("user", f"Which reply is better, {number}?"),)
        return (yield Request("own", MODEL, messages, max_tokens=40, json_reply=True))

    async def answers(ledger: Ledger) -> dict[str, Answer]:
        askings = [(str(k), ask(k)) for k in range(4)]
        return {name: answer async for name, answer in drive(askings, provider, ledger, counts=counts)}

    with Ledger(store.files) as ledger:
        return asyncio.run(answers(ledger))


def test_the_teachers_replies_are_transformers_greedy_ones(taught: Taught) -> None:
    store = taught.store
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
    store = taught.store
    before = list(store.get(taught.stage).read(Reply))
    shutil.rmtree(Path(store.url) / "replies")
    with providers.ready([taught.stage], taught.profile) as places:
        assert places["own"].base_url == providers.NOBODY
        make(taught.stage, store, places)
    assert list(store.get(taught.stage).read(Reply)) == before
    assert store.get(taught.stage).counts.get("calls", 0) == 0


def test_a_request_for_json_is_answered_in_json_and_paid_for_once(taught: Taught) -> None:
    assert taught.calls == len(taught.json) == 4
    for answer in taught.json.values():
        assert (answer.refused, answer.model_served) == (None, MODEL)
        assert answer.text.lstrip()[0] in '{["-0123456789tfn'  # a random model writes odd JSON, and seldom ends it
        if answer.finish_reason == "stop":
            json.loads(answer.text)
    again = Counts()
    gone = Provider("own", providers.NOBODY)  # the engine has ended, and its key with it
    assert in_json(gone, taught.store, again) == taught.json
    assert (again.calls, again.from_ledger) == (0, 4)
