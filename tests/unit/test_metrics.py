"""Expected values by hand, or from sacrebleu where ours is a faster way to the same number."""

import numpy as np
import pytest

from empathy.columns import to_table
from empathy.metrics import CORPUS, PER_REPLY
from empathy.metrics.distinct import VOCABULARY
from empathy.metrics.likelihood import (
    accuracy_difference,
    margins,
    nll_difference,
    nll_per_token,
    preference_accuracy,
    scored,
)
from empathy.metrics.overlap import bleu, rouge_l
from empathy.metrics.self_bleu import self_bleu
from empathy.records import Logprob

REPLIES = ["I am so sorry to hear that.", "I am so happy for you! Did you celebrate?", "That is hard, hard news."]


def test_words_are_whitespace_separated() -> None:
    assert [PER_REPLY["words"](r) for r in [*REPLIES, ""]] == [7, 9, 5, 0]


def test_distinct_variants_by_hand() -> None:
    replies = ["a b a b", "a c"]
    assert PER_REPLY["distinct_1_mean"](replies[0]) == 2 / 4
    assert PER_REPLY["distinct_2_mean"](replies[0]) == 2 / 3  # ab ba ab
    assert CORPUS["distinct_1_corpus"](replies) == 3 / 6
    assert CORPUS["distinct_2_corpus"](replies) == 3 / 4  # ab ba ab ac
    # six draws from V are expected to give V(1 - (1 - 1/V)^6) = 6 - 15/V + ... different words
    assert CORPUS["distinct_1_adjusted"](replies) == pytest.approx(3 / (6 - 15 / VOCABULARY), rel=1e-8)
    assert np.isnan(PER_REPLY["distinct_2_mean"]("word"))
    assert CORPUS["distinct_2_corpus"](["word"]) is None


def test_adjusted_distinct_is_not_lowered_by_length_alone() -> None:
    rng = np.random.default_rng(0)
    short, long = (" ".join(f"w{i}" for i in rng.integers(0, VOCABULARY, n)) for n in (2_000, 20_000))
    corpus, adjusted = CORPUS["distinct_1_corpus"], CORPUS["distinct_1_adjusted"]
    assert corpus([long]) < corpus([short]) - 0.2
    assert adjusted([long]) == pytest.approx(adjusted([short]), abs=0.01)


def test_phrases() -> None:
    assert [PER_REPLY["question_share"](r) for r in REPLIES] == [0, 1, 0]
    assert [
        PER_REPLY["template_share"](r)
        for r in ["I’m so sorry to hear that", "Have you considered joining a support group?"]
    ] == [1, 1]
    assert PER_REPLY["template_share"]("Your brother leaving like that, after all you did for him.") == 0


def test_self_bleu_equals_sacrebleu_against_all_others() -> None:
    from sacrebleu.metrics import BLEU

    replies = [
        "i am so sorry to hear that my friend",
        "i am so happy for you my friend",
        "we are so sorry to hear this today",
    ]
    slow = BLEU(effective_order=True, tokenize="none", smooth_method="exp")
    expected = [slow.sentence_score(r, [o for o in replies if o is not r]).score for r in replies]
    assert self_bleu(replies) == pytest.approx(np.mean(expected))
    assert self_bleu(["one and the same reply"] * 3) == pytest.approx(100)
    assert self_bleu(["alone"]) is None


def test_self_bleu_equals_sacrebleu_on_random_texts() -> None:
    from sacrebleu.metrics import BLEU

    rng = np.random.default_rng(1)
    replies = [" ".join(f"w{i}" for i in rng.integers(0, 6, n)) for n in rng.integers(1, 14, 30)]
    slow = BLEU(effective_order=True, tokenize="none", smooth_method="exp")
    expected = [slow.sentence_score(r, replies[:i] + replies[i + 1 :]).score for i, r in enumerate(replies)]
    assert self_bleu(replies) == pytest.approx(np.mean(expected))


def test_overlap() -> None:
    score, signature = bleu(REPLIES, REPLIES)
    assert score == pytest.approx(100)
    assert "nrefs:1" in signature
    assert "version:" in signature
    # stemmed: "sorri hear" of "you sorri to hear" (4) against "sorri hear" (2): P 2/4, R 1, F1 2/3
    assert rouge_l(["You, sorry to hear"], ["sorry hearing"]) == [pytest.approx(2 / 3)]


def logprobs(**sides: list[tuple[float, int]]) -> dict[str, object]:
    rows = [
        Logprob(f"e{i}", side, nats, tokens)
        for side, values in sides.items()
        for i, (nats, tokens) in enumerate(values)
    ]
    table = to_table(rows, Logprob)
    return {side: scored(table, side) for side in sides}


GROUPS = {"e0": "x", "e1": "y", "e2": "y"}


def test_nll_is_per_token() -> None:
    replies = logprobs(reply=[(-10, 5), (-2, 1), (-6, 6)])["reply"]
    assert nll_per_token(replies, GROUPS).value == pytest.approx(18 / 12)


def test_nll_difference_is_paired() -> None:
    base, ours = (
        logprobs(reply=[(-10, 5), (-2, 1), (-6, 6)])["reply"],
        logprobs(reply=[(-9, 5), (-1.8, 1), (-4.8, 6)])["reply"],
    )
    found = nll_difference(ours, base, GROUPS)
    # every token is .2 nats likelier, in every cluster: the difference is certain although the replies differ much
    assert found.value == pytest.approx(-0.2)
    assert found.se == pytest.approx(0, abs=1e-12)
    assert found.clusters == 2


def test_nll_of_two_tokenizers_is_not_compared() -> None:
    with pytest.raises(ValueError, match="one student"):
        nll_difference(logprobs(reply=[(-1, 5)])["reply"], logprobs(reply=[(-1, 4)])["reply"], GROUPS)


def test_preference_accuracies_differ_as_named() -> None:
    pairs = logprobs(chosen=[(-12, 12), (-9, 3), (-4, 4)], rejected=[(-8, 4), (-10, 2), (-5, 5)])
    base = logprobs(chosen=[(-15, 12), (-8, 3), (-4, 4)], rejected=[(-9, 4), (-10, 2), (-6, 5)])
    ids = pairs["chosen"].ids
    summed = margins(pairs["chosen"], pairs["rejected"])
    assert list(summed) == [-4, 1, 1]
    assert list(margins(pairs["chosen"], pairs["rejected"], per_token=True)) == [1, 2, 0]  # a tie is not won
    over_base = margins(pairs["chosen"], pairs["rejected"], (base["chosen"], base["rejected"]))
    assert list(over_base) == [2, -1, -1]  # (3 - 1), (-1 - 0), (0 - 1)
    assert preference_accuracy(summed, ids, GROUPS).value == pytest.approx(2 / 3)
    assert preference_accuracy(over_base, ids, GROUPS).value == pytest.approx(1 / 3)
    assert accuracy_difference(summed, over_base, ids, GROUPS).value == pytest.approx((-1 + 1 + 1) / 3)
