"""`empathy serve` on a finished run: what the endpoint says is what was judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from empathy.records import Dialogue, Reply
from tests.cluster import EMPATHY, started, wait_until
from tests.whole.conftest import Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KEY = "a key of this test"
BASE, STUDENT = "tiny", "tiny-sft-dpo-direct-rule-teacher-1"


@pytest.fixture(scope="module")
def url(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    work, folder = finished.work, tmp_path_factory.mktemp("serve")
    log: Path = folder / "log"
    words = [EMPATHY, "serve", BASE, STUDENT, "--file", work.file, "--port", "0", *work.where]
    with started(*words, cwd=folder, log=log, EMPATHY_API_KEY=KEY) as process:
        wait_until(lambda: "serves" in log.read_text(), process, log, "the endpoint's address")
        found = re.search(r"(http://127\.0\.0\.1:\d+/v1) serves", log.read_text())
        assert found, log.read_text()
        yield found[1]


def client(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


@pytest.mark.parametrize("name", [BASE, STUDENT])
def test_greedy_replies_are_the_judged_ones(finished: Finished, url: str, name: str) -> None:
    work = finished.work
    key = work.lowered.checkpoints[name].key
    stage = next(
        s
        for s in work.lowered.report.inputs.values()
        if s.kind == "replies" and "checkpoint" in s.inputs and s.inputs["checkpoint"].key == key
    )
    judged = {r.dialogue_id: r.text for r in work.store.get(stage).read(Reply)}
    dialogues = work.store.get(work.lowered.report.inputs["dialogues"]).read(Dialogue)
    asked = [d for d in dialogues if d.id in judged]
    assert asked
    for dialogue in asked:
        answer = client(url).chat.completions.create(
            model=name,
            messages=[t.as_message() for t in dialogue.turns],
            temperature=0,
            max_tokens=16,
        )
        assert answer.choices[0].message.content == judged[dialogue.id]


def test_students_are_listed_and_disclose_what_they_are(url: str) -> None:
    assert {m.id for m in client(url).models.list()} == {BASE, STUDENT}
    answer = client(url).chat.completions.create(
        model=STUDENT, messages=[{"role": "user", "content": "I failed my driving test."}], max_tokens=4
    )
    assert "AI" in answer.to_dict()["metadata"]["ai_disclosure"]


def test_without_the_key_nothing(url: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(url, "another").models.list()
