"""Word overlap with a reference reply: BLEU-4 and ROUGE-L, by the libraries that the field quotes."""

from __future__ import annotations

from collections.abc import Sequence

STEMMER = True


def bleu(replies: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU-4 (0 to 100) of replies against one reference each, and sacrebleu's signature."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(replies), [list(references)]).score
    return float(score), str(metric.get_signature())


def rouge_l(replies: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 (0 to 1) of each reply against its reference; rouge-score with the Porter stemmer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=STEMMER)
    return [float(scorer.score(ref, text)["rougeL"].fmeasure) for text, ref in zip(replies, references, strict=True)]
