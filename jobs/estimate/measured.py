"""How long models' answers are, by what the finished stages of a store counted when they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from empathy.stages import Stage
from empathy.store import Store
from serving.uses import uses

Asked = tuple[str, str, str]
"""(what for, provider, model); what for: "replies", a mode of pairwise judging, "rubric", or "ratings"."""
MOST_READ = 1_000
"""Manifests that are read at most; those of the experiment itself come first."""


def asked(spec: Mapping[str, Any]) -> Asked | None:
    """What is asked of whom to make a stage of this spec, as identities hold it; None where nobody is asked.

    Ratings are a rubric's scores on more than the test side, which choose examples; they are told apart because the
    replies that they are about are others.
    """
    if judge := spec.get("judge"):
        mode = judge.get("mode") or ("rubric" if spec.get("split") == "test" else "ratings")
        return mode, judge["provider"], judge["model"]
    responder = spec.get("responder") or {}
    return ("replies", responder["provider"], responder["model"]) if responder.get("type") == "teacher" else None


def answer_tokens(store: Store, finished: Iterable[Stage]) -> dict[Asked, float]:
    """Mean tokens of one answer (a turn of a chat, a verdict), over the calls that were really made and answered for
    `finished` and for the other paid stages that experiments of the store stand on. Replies from the ledger are not in
    it, nor stages whose provider counted no tokens, nor what is damaged.
    """
    own = [f"{stage.kind}/{stage.key}" for stage in finished if asked(stage.identity["spec"])]
    noted = (name for stages in uses(store.files, lambda error: None).values() for name in sorted(stages))
    tokens_out, answers = Counter[Asked](), Counter[Asked]()
    for artifact in store.named(islice(dict.fromkeys((*own, *noted)), MOST_READ), lambda error: None):
        who, counts = asked(artifact.identity["spec"]), artifact.counts
        if who and counts.get("tokens_out"):
            tokens_out[who] += counts["tokens_out"]
            answers[who] += counts["calls"] - counts.get("retries", 0)
    return {who: tokens_out[who] / n for who, n in answers.items() if n > 0}
