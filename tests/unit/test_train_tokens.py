"""Token ids of chats, and the mask that is exactly the reply."""

from __future__ import annotations

import hashlib

import pytest

from empathy import templates
from empathy.records import Turn
from empathy.train.base import random_tokenizer
from empathy.train.tokens import Renderer, Row, demonstration_rows, preference_rows, proof
from tests.lessons import WORDS, demonstrations, preferences

PLAIN = templates.load("plain")
HI = (Turn("user", "i feel so sad"),)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return random_tokenizer([" ".join(WORDS)] * 3, vocab=400, positions=256)


@pytest.fixture
def renderer(tokenizer) -> Renderer:  # type: ignore[no-untyped-def]
    return Renderer(tokenizer, PLAIN)


def test_supervised_tokens_are_the_reply_and_its_end(renderer: Renderer) -> None:
    shown = demonstrations(20, 4)
    for example, row in zip(shown, demonstration_rows(renderer, shown), strict=True):
        learned = [label for label in row.labels if label != -100]
        assert renderer.tokenizer.decode(learned) == example.reply + "<|end|>"
        assert renderer.tokenizer.decode(row.prompt) == f"<|user|>\n{example.messages[0].content}\n<|assistant|>\n"
        assert len(row.labels) == len(row.ids) == len(row)


def test_pairs_share_their_prompt(renderer: Renderer) -> None:
    for chosen, rejected in preference_rows(renderer, preferences(10, 4)):
        assert chosen.prompt == rejected.prompt
        assert chosen.reply != rejected.reply


def test_earlier_turns_are_context_not_target(renderer: Renderer) -> None:
    turns = (Turn("system", "be kind"), *HI, Turn("assistant", "i want to hear"), Turn("user", "my dog was old"))
    (row,) = renderer.rows([(turns, "it must be hard")])
    assert renderer.tokenizer.decode(row.reply) == "it must be hard<|end|>"
    assert renderer.tokenizer.decode(row.prompt) == (
        "<|system|>\nbe kind\n<|user|>\ni feel so sad\n<|assistant|>\ni want to hear<|end|>\n<|user|>\nmy dog "
        "was old\n<|assistant|>\n"
    )


@pytest.mark.parametrize("reply", ["  it must be hard \n", "Ünïcode 🙂 – and\n\na new line"])
def test_odd_replies_are_learned_as_they_are_but_for_outer_space(renderer: Renderer, reply: str) -> None:
    (row,) = renderer.rows([(HI, reply)])
    assert renderer.tokenizer.decode(row.reply) == reply.strip() + "<|end|>"


@pytest.mark.parametrize("reply", ["", " \n "])
def test_a_row_that_would_teach_nothing_is_an_error(renderer: Renderer, reply: str) -> None:
    with pytest.raises(ValueError, match="would teach ''"):
        renderer.rows([(HI, reply)])


def test_an_end_token_inside_a_reply_is_an_error(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="would teach 'thank you'"):
        renderer.rows([(HI, "thank you<|end|>for being here")])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (PLAIN.replace("{{ eos_token }}", ""), "no end token after the reply"),
        (
            PLAIN.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}{{ 'so' }}"),
            "prompt changes when the reply follows",
        ),
        ("{{ raise_exception('no system role') }}", "refuses these messages .*no system role"),
        (
            PLAIN.replace("{% generation %}{{ message['content'] | trim }}", "{% generation %}Hm."),
            "would teach 'Hm.' where the reply is 'so'",
        ),
    ],
)
def test_templates_that_cannot_be_trained_with_are_refused(tokenizer, template: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=reason):
        Renderer(tokenizer, template).rows([(HI, "so")])


def test_what_follows_the_end_token_is_not_learned(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (row,) = Renderer(tokenizer, PLAIN.replace("{{ '\\n' }}{% endfor %}", "{{ ' and more' }}{% endfor %}")).rows(
        [(HI, "so")]
    )
    assert tokenizer.decode(row.reply) == "so<|end|>"


@pytest.mark.parametrize(
    ("template", "count"), [("{{ bos_token }}" + PLAIN, 2), (PLAIN.replace("{{ bos_token }}", ""), 0)]
)
def test_begin_of_sequence_is_there_once(template: str, count: int) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = random_tokenizer([" ".join(WORDS)] * 3, vocab=400, positions=256)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = ("<|begin|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[begin])
    (row,) = Renderer(tokenizer, PLAIN).rows([(HI, "so")])
    assert row.prompt.count(tokenizer.bos_token_id) == 1
    with pytest.raises(ValueError, match=f"starts with {count} begin-of-sequence tokens and this model wants one"):
        Renderer(tokenizer, template).rows([(HI, "so")])


def test_a_tokenizer_that_cannot_end_is_refused() -> None:
    tokenizer = random_tokenizer([" ".join(WORDS)] * 3, vocab=400, positions=256)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        Renderer(tokenizer, PLAIN)


def test_stop_ids_are_the_end_tokens_that_were_learned(renderer: Renderer) -> None:
    renderer.rows([(HI, "so")])
    assert renderer.stop_ids == {renderer.tokenizer.convert_tokens_to_ids("<|end|>")}


def test_proof_is_a_hash_of_the_first_eight_rows() -> None:
    shown = demonstrations(9, 1)
    rows = [Row((i,), (i, 1)) for i in range(9)]
    whole = "[[0,0,1],[1,1,1],[2,2,1],[3,3,1],[4,4,1],[5,5,1],[6,6,1],[7,7,1]]"
    found = proof(shown, rows)
    assert found["sha256"] == hashlib.sha256(whole.encode()).hexdigest()
    assert found["prompt_sha256"] == hashlib.sha256(b"[[0],[1],[2],[3],[4],[5],[6],[7]]").hexdigest()
    assert found["example_ids"] == [e.id for e in shown[:8]]


def test_the_tokenizer_is_a_function_of_its_corpus(tokenizer) -> None:  # type: ignore[no-untyped-def]
    again = random_tokenizer([" ".join(WORDS)] * 3, vocab=400, positions=256)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    text = "Ünïcode 🙂 – \n\t<b>"
    assert again.decode(again(text).input_ids) == text


def test_templates_by_name_and_by_path(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert templates.names() == ["plain"]
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}")
    assert templates.load(str(own)) == "{{ messages }}"
    with pytest.raises(
        ValueError,
        match=r"template = 'plane': no such template, did you mean 'plain'\? There are plain, or",
    ):
        templates.load("plane")
