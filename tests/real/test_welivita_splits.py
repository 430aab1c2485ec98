"""The numbers of the published W&P study, through the stages that an experiment runs (mission 5; the paper's
section 4)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from empathy import dialogues, examples, experiment, replies, screens
from empathy.records import Demonstration, Dialogue, Preference, Reply
from empathy.sources import parse
from empathy.specs import (
    Direct,
    ExamplesSpec,
    GroupSplit,
    ImproveHuman,
    ImproveLlm,
    MethodSpec,
    PaperSplit,
    Pooled,
    RandomSplit,
    Recorded,
    RepliesSpec,
)
from empathy.stages import Stage
from empathy.store import Artifact, Store
from empathy.twins import MIN_WORDS

GOOD_SFT_DPO = {
    "gpt-4": (1295, 639, 593),
    "llama-2-70b-chat": (1219, 617, 563),
    "gemini-1.0-pro": (1081, 551, 500),
    "mixtral-8x7b": (1192, 587, 575),
}
"""Rated Good of 2,000; dialogues for SFT and for DPO in method 1."""
MEAN_WORDS = {"human": 24.2, "gpt-4": 28.9, "llama-2-70b-chat": 46.3, "gemini-1.0-pro": 47.7, "mixtral-8x7b": 52.7}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("store")))


def data(folder: str, **options: object) -> dict[str, object]:
    return {"type": folder, "path": f"${{EMPATHY_DATA}}/{folder}", **options}


def make(store: Store, stage: Stage) -> Stage:
    if not store.done(stage):
        maker = {"dialogues": dialogues.make, "replies": replies.recorded, "examples": examples.make}[stage.kind]
        maker(stage, store, store.writer(stage))
    return stage


@pytest.fixture(scope="module")
def paper(store: Store) -> Stage:
    return make(store, dialogues.stage(parse(data("welivita_pu")), PaperSplit()))


def recorded(store: Store, paper: Stage, responder: str) -> Stage:
    return make(store, Stage(RepliesSpec(responder=Recorded(responder=responder)), {"dialogues": paper}))


def made(store: Store, paper: Stage, method: MethodSpec, objective: str, replies_: Stage, **inputs: Stage) -> Artifact:
    spec = ExamplesSpec(method=method, objective=objective)  # type: ignore[arg-type]
    return store.get(make(store, Stage(spec, {"dialogues": paper, "replies": replies_, **inputs})))


def test_dialogues(store: Store, paper: Stage) -> None:
    artifact = store.get(paper)
    found = list(artifact.read(Dialogue))
    assert artifact.counts == {"train": 1750, "test": 250}  # and not one row dropped
    assert len({d.id for d in found}) == 2000
    assert len({d.group for d in found}) == 200
    assert len({d.emotion for d in found}) == 32


@pytest.mark.parametrize("responder", MEAN_WORDS)
def test_ratings_and_words(store: Store, paper: Stage, responder: str) -> None:
    good = {"human": 986} | {name: counts[0] for name, counts in GOOD_SFT_DPO.items()}
    found = list(store.get(paper).read(Dialogue))
    assert sum(d.ratings[responder] == 3 for d in found) == good[responder]
    words = [len(r.text.split()) for r in store.get(recorded(store, paper, responder)).read(Reply)]
    assert len(words) == 2000
    assert round(sum(words) / 2000, 1) == MEAN_WORDS[responder]


@pytest.mark.parametrize("responder", GOOD_SFT_DPO)
def test_the_screens_of_the_papers_grid_drop_no_recorded_reply_that_is_learned(
    store: Store, paper: Stage, responder: str
) -> None:
    learned, (_, sft, dpo) = recorded(store, paper, responder), GOOD_SFT_DPO[responder]
    x = experiment.load(Path(__file__).parents[2] / "jobs" / "experiments" / "paper.toml")
    (names,) = [arms.screens for arms in x.arms if responder in arms.teacher]
    assert names
    for objective, rows in (("sft", 2 * sft), ("dpo", dpo)):
        spec = ExamplesSpec(method=Direct(), objective=objective, screens=names)  # type: ignore[arg-type]
        stage = make(store, Stage(spec, {"dialogues": paper, "replies": learned}))
        assert (store.get(stage).rows, store.get(stage).meta["dropped"]) == (rows, {})


@pytest.mark.parametrize("responder", GOOD_SFT_DPO)
def test_method_1(store: Store, paper: Stage, responder: str) -> None:
    learned = recorded(store, paper, responder)
    _, sft, dpo = GOOD_SFT_DPO[responder]
    shown = list(made(store, paper, Direct(), "sft", learned).read(Demonstration))
    assert len(shown) == 2 * sft
    assert len({e.dialogue_id for e in shown}) == sft
    pairs = list(made(store, paper, Direct(), "dpo", learned).read(Preference))
    assert len(pairs) == len({e.dialogue_id for e in pairs}) == dpo
    tested = {d.id for d in store.get(paper).read(Dialogue) if d.split == "test"}
    assert tested.isdisjoint({e.dialogue_id for e in [*shown, *pairs]})


def test_methods_2_and_3(store: Store, paper: Stage) -> None:
    """Both split by the human's rating alone; a recorded model's replies stand in for the rewrites, which are not
    published."""
    human, rewrites = recorded(store, paper, "human"), recorded(store, paper, "gpt-4")
    initial = recorded(store, paper, "mixtral-8x7b")
    for method, inputs in ((ImproveHuman(), {"initial": human}), (ImproveLlm(), {"initial": initial})):
        assert made(store, paper, method, "sft", rewrites, **inputs).rows == 2 * 950
        assert made(store, paper, method, "dpo", rewrites, **inputs).rows == 800
    alone = made(store, paper, ImproveHuman(both_replies=False), "sft", rewrites, initial=human)
    assert alone.rows == 950


def test_method_3_as_the_papers_code_has_it(store: Store, paper: Stage) -> None:
    """A random 950 / 800; the human reply is rejected, and stays beside the improved one in SFT."""
    method = ImproveLlm(rejected="human", original="human", division="random")
    rewrites, initial = recorded(store, paper, "gpt-4"), recorded(store, paper, "mixtral-8x7b")
    shown = list(made(store, paper, method, "sft", rewrites, initial=initial).read(Demonstration))
    pairs = list(made(store, paper, method, "dpo", rewrites, initial=initial).read(Preference))
    taught = {e.dialogue_id for e in shown}
    assert (len(taught), len(shown), len(pairs)) == (950, 2 * 950, 800)
    assert taught.isdisjoint({p.dialogue_id for p in pairs})
    dialogues_ = {d.id: d for d in store.get(paper).read(Dialogue)}
    assert {e.reply for e in shown if e.source == "human"} == {dialogues_[d].human_reply for d in taught}
    assert all(p.rejected == dialogues_[p.dialogue_id].human_reply for p in pairs)
    # Not by ratings: 950 of 1,750 human replies are Good, so about 516 of the 950 drawn ones (sd 11).
    assert 450 < sum(dialogues_[d].ratings["human"] == 3 for d in taught) < 580


def test_a_union_of_three_strategies(store: Store, paper: Stage) -> None:
    """SFT: the human reply once and three improved ones; DPO: three pairs. Recorded models stand in for strategies."""
    human = recorded(store, paper, "human")
    three = [recorded(store, paper, name) for name in ("gpt-4", "llama-2-70b-chat", "mixtral-8x7b")]
    inputs = {"dialogues": paper} | {f"of:{k}": stage for k, stage in enumerate(three)}
    union = Stage(RepliesSpec(responder=Pooled()), inputs)
    replies.pooled(union, store, store.writer(union))
    assert store.get(union).rows == 3 * 2000
    shown = Counter(
        e.source for e in made(store, paper, ImproveHuman(), "sft", union, initial=human).read(Demonstration)
    )
    assert shown == {"human": 950, "improved": 3 * 950}
    assert made(store, paper, ImproveHuman(), "dpo", union, initial=human).rows == 3 * 800


def test_one_pair_of_situation_and_utterance_occurs_twice_both_in_training(store: Store, paper: Stage) -> None:
    seen: dict[tuple[str | None, str], list[Dialogue]] = {}
    for d in store.get(paper).read(Dialogue):
        seen.setdefault((d.situation, d.turns[0].content), []).append(d)
    (twice,) = [same for same in seen.values() if len(same) > 1]
    assert [d.split for d in twice] == ["train", "train"]


def test_every_id_is_in_empathetic_dialogues_and_without_takes_all_of_them_out(store: Store, paper: Stage) -> None:
    source = parse(data("empathetic_dialogues"))
    ids = {d.id for d in store.get(paper).read(Dialogue)}
    everything = make(store, dialogues.stage(source, RandomSplit(test_fraction=0.0), only="train"))
    theirs = {d.id for d in store.get(everything).read(Dialogue)}
    assert len(theirs) == 24_853
    assert ids <= theirs
    rest = store.get(make(store, dialogues.stage(source, RandomSplit(test_fraction=0.0), only="train", without=paper)))
    assert rest.counts["excluded_id"] == 2000
    left = list(rest.read(Dialogue))
    assert ids.isdisjoint({d.id for d in left})
    said = {" ".join(d.turns[0].content.lower().split()) for d in store.get(paper).read(Dialogue)}
    again = {t for d in left if (t := " ".join(d.turns[0].content.lower().split())) in said}
    assert all(len(t.split()) < MIN_WORDS for t in again), again
    assert len(left) + 2000 + rest.counts["excluded_text"] == 24_853


def test_group_split_keeps_part_no_whole(store: Store) -> None:
    stage = make(store, dialogues.stage(parse(data("welivita_pu")), GroupSplit(test_fraction=0.125)))
    sides: dict[str, set[str]] = {}
    for d in store.get(stage).read(Dialogue):
        sides.setdefault(d.group, set()).add(d.split)
    assert len(sides) == 200
    assert all(len(s) == 1 for s in sides.values())
    assert 150 <= store.get(stage).counts["test"] <= 350  # 25 groups of 10 expected, standard deviation 4.7 groups


def test_the_path_needs_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(os.environ["EMPATHY_DATA"]).is_dir()
    monkeypatch.delenv("EMPATHY_DATA")
    with pytest.raises(ValueError, match="environment variable EMPATHY_DATA is not set"):
        dialogues.stage(parse(data("welivita_pu")), PaperSplit())


def test_what_screens_would_catch_among_the_recorded_replies(store: Store, paper: Stage) -> None:
    """All but those that break off were read, and are right. 64 of gpt-4's refusals are one sentence: "I'm unable to
    provide the help that you need"."""
    caught: Counter[tuple[str, str]] = Counter()
    artifact = store.get(paper)
    for part in range(len(artifact.parts)):
        dialogues = pl.DataFrame(pl.from_arrow(artifact.table(part)))
        for responder in GOOD_SFT_DPO:
            entry = pl.element().struct
            of = pl.col("recorded").list.eval(entry.field("value").filter(entry.field("key") == responder)).list.first()
            replies = dialogues.select("turns", "situation", text=of, repeats=pl.lit(False))
            for name in screens.NAMES:
                caught[responder, name] += screens.screened(replies, [name]).count()
    cut = {responder: caught.pop((responder, "cut_off"), 0) for responder in GOOD_SFT_DPO}
    assert +caught == {
        ("gpt-4", "refusal"): 66,
        ("mixtral-8x7b", "refusal"): 3,
        ("llama-2-70b-chat", "echoes_label"): 1,
        ("gemini-1.0-pro", "names_itself_ai"): 1,
        ("mixtral-8x7b", "names_itself_ai"): 3,
    }
    assert cut == {"gpt-4": 0, "llama-2-70b-chat": 181, "gemini-1.0-pro": 3, "mixtral-8x7b": 203}
