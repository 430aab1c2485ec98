"""`empathy serve` on a finished run: what the endpoint says is what was judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from empathy.records import Dialogue, Reply
from tests.cluster import EMPATHY, empathy, started, wait_until
from tests.whole.conftest import Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KEY = "a key of this test"
BASE, STUDENT = "tiny", "tiny-sft-dpo-direct-rule-teacher-1"
POSITIONS = 256
"""Of the student (`tests.experiments`)."""


@contextmanager
def serving(finished: Finished, folder: Path, *words: str) -> Iterator[str]:
    """The address of `empathy serve` with these students and options; told to end, as a service is, it ends well."""
    work, log = finished.work, folder / "log"
    command = [EMPATHY, "serve", *words, "--file", work.file, "--port", "0", *work.where]
    with started(*command, cwd=folder, log=log, EMPATHY_API_KEY=KEY) as process:
        wait_until(lambda: "serves" in log.read_text(), process, log, "the endpoint's address")
        found = re.search(r"(http://127\.0\.0\.1:\d+/v1) serves", log.read_text())
        assert found, log.read_text()
        yield found[1]
        process.terminate()
        assert process.wait(120) == 0, log.read_text()
        assert log.read_text().endswith("stopped\n")


@pytest.fixture(scope="module")
def url(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(finished, tmp_path_factory.mktemp("serve"), BASE, STUDENT) as address:
        yield address


def client(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def judged(finished: Finished, name: str) -> list[tuple[list[dict[str, str]], Reply]]:
    """(messages, the reply of student `name` that was judged) of each test dialogue."""
    work = finished.work
    key = work.lowered.checkpoints[name].key
    stage = next(
        s
        for s in work.lowered.report.inputs.values()
        if s.kind == "replies" and "checkpoint" in s.inputs and s.inputs["checkpoint"].key == key
    )
    said = {r.dialogue_id: r for r in work.store.get(stage).read(Reply)}
    dialogues = work.store.get(work.lowered.report.inputs["dialogues"]).read(Dialogue)
    found = [([t.as_message() for t in d.turns], said[d.id]) for d in dialogues if d.id in said]
    assert found
    return found


def ask(url: str, name: str, messages: list[dict[str, str]]) -> str | None:
    answer = client(url).chat.completions.create(
        model=name,
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=16,
    )
    return answer.choices[0].message.content


@pytest.mark.parametrize("name", [BASE, STUDENT])
def test_greedy_replies_are_the_judged_ones(finished: Finished, url: str, name: str) -> None:
    for messages, reply in judged(finished, name):
        assert ask(url, name, messages) == reply.text


def test_an_exported_student_loads_by_itself_and_says_what_was_judged(finished: Finished, tmp_path: Path) -> None:
    work, folder = finished.work, tmp_path / "student"
    command = ("export", STUDENT, "--file", work.file, "--to", folder, "--merged", *work.where)
    done = empathy(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for messages, reply in judged(finished, STUDENT):
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        ids = model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :]
        assert tuple(ids.tolist()) == reply.token_ids
    card = (folder / "README.md").read_text()
    assert work.lowered.checkpoints[STUDENT].key in card
    assert "You are talking to an AI" in card
    again = empathy(*command, cwd=tmp_path)
    assert (again.returncode, "not empty" in again.stderr) == (2, True)


@pytest.mark.long
def test_a_merged_student_is_served_alone_and_says_what_was_judged(finished: Finished, tmp_path: Path) -> None:
    with serving(finished, tmp_path, STUDENT, "--merged") as address:
        assert [m.id for m in client(address).models.list()] == [STUDENT]
        for messages, reply in judged(finished, STUDENT):
            assert ask(address, STUDENT, messages) == reply.text


def test_students_are_listed_and_disclose_what_they_are(url: str) -> None:
    assert {m.id for m in client(url).models.list()} == {BASE, STUDENT}
    answer = client(url).chat.completions.create(
        model=STUDENT, messages=[{"role": "user", "content": "I failed my driving test."}], max_tokens=4
    )
    assert "AI" in answer.to_dict()["metadata"]["ai_disclosure"]


def test_a_request_that_names_no_limit_gets_what_its_prompt_leaves(finished: Finished, url: str) -> None:
    """Not a fixed number of tokens, which is refused where the model's context is shorter."""
    (messages, _), *_ = judged(finished, STUDENT)
    chat = client(url).chat.completions.create(model=STUDENT, messages=messages, temperature=0)  # type: ignore[arg-type]
    text = client(url).completions.create(model=STUDENT, prompt="Once", temperature=0)
    for usage in (chat.usage, text.usage):
        assert usage is not None
        assert 0 < usage.completion_tokens <= POSITIONS - usage.prompt_tokens


def test_without_the_key_nothing(url: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(url, "another").models.list()
