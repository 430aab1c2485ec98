"""What is refused once the dialogues are read, before anybody is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import runner
from cluster.executors import LANES, Context, Lane
from cluster.profile import Asking, Profile
from cluster.progress import Progress
from empathy import dialogues, experiment
from empathy.doors import check_sets, check_sides, in_store
from empathy.lower import lower
from empathy.records import Dialogue
from empathy.sources import parse
from empathy.specs import (
    Direct,
    ExamplesSpec,
    Human,
    ImproveHuman,
    ImproveLlm,
    OfficialSplit,
    RandomSplit,
    Recorded,
    RepliesSpec,
    Teacher,
)
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from jobs import plan, run
from tests.experiments import tiny, tiny_file

SOURCE = {"type": "jsonl", "recorded_replies": ["m"]}
ASKED = Teacher(provider="p", model="t", turns=("{dialogue}",))


def made(folder: Path, *ratings: dict[str, int]) -> tuple[Stage, Store]:
    """The dialogues stage of d0, d1, ... rated so, a part each."""
    rows = [
        {
            "id": f"d{k}",
            "turns": [{"role": "user", "content": f"my worry number {k}"}],
            "human_reply": f"human {k}",
            "recorded": {"m": f"m {k}"},
            "ratings": rated,
        }
        for k, rated in enumerate(ratings)
    ]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stage = dialogues.stage(
        parse(SOURCE | {"path": str(folder / "d.jsonl")}), RandomSplit(test_fraction=0.0), part_rows=1
    )
    store = Store.open(str(folder / "store"))
    dialogues.make(stage, store, store.writer(stage))
    return stage, store


def sets(of: Stage, method: Any, responder: Any, **more: Any) -> Stage:
    inputs = {"dialogues": of}
    if responder is not None:
        inputs["replies"] = Stage(RepliesSpec(responder=responder), {"dialogues": of})
    return Stage(ExamplesSpec(method=method, objective=more.pop("objective", "sft"), **more), inputs)


GOOD, OKAY, BAD, BOTH = {"human": 3}, {"human": 2}, {"human": 1}, {"human": 3, "m": 3}


@pytest.mark.parametrize(
    ("method", "responder", "ratings", "who"),
    [
        (ImproveHuman(), ASKED, [GOOD, GOOD, {}], "'d2': its human"),
        (ImproveHuman(), ASKED, [GOOD, GOOD, GOOD], None),
        (ImproveLlm(), ASKED, [{}, GOOD], "'d0': its human"),
        (ImproveLlm(division="random"), ASKED, [{}, {}], None),
        (Human(), None, [{}], None),
        (Human(least_rating=2), None, [GOOD, {}], "'d1': its human"),
        (Direct(), Recorded(responder="m"), [BOTH, BOTH], None),
        (Direct(), Recorded(responder="m"), [BOTH, GOOD], "'d1': its learned"),
        (Direct(), ASKED, [BOTH], "'d0': its learned"),
        (Direct(unrated_is_good=True), ASKED, [{}], None),
    ],
)
def test_a_set_is_refused_where_a_rating_that_it_selects_by_is_not_there(
    method: Any, responder: Any, ratings: list[dict[str, int]], who: str | None, tmp_path: Path
) -> None:
    of, store = made(tmp_path, *ratings)
    wanted = sets(of, method, responder)
    if who is None:
        check_sets([wanted], in_store(store))
        return
    with pytest.raises(ValueError, match=f"dialogue {who} reply has no rating to select by; use a source with ratings"):
        check_sets([wanted], in_store(store))


@pytest.mark.parametrize(
    ("method", "responder", "objective", "ratings", "found"),
    [
        (ImproveHuman(), ASKED, "dpo", [GOOD, GOOD], "2 train .* 'improve_human' .* DPO .*Good 2, Okay 0, Bad 0, unr"),
        (ImproveHuman(), ASKED, "sft", [OKAY, BAD, OKAY], "3 train .* SFT .*Good 0, Okay 2, Bad 1, unrated 0"),
        (ImproveHuman(), ASKED, "dpo", [GOOD, OKAY], None),
        (Direct(unrated_is_good=True), ASKED, "dpo", [{}], "1 train .* 'direct' .*unrated 1"),
        (Direct(), Recorded(responder="m"), "sft", [{"human": 3, "m": 1}], "1 train .* 'direct' .*Good 1"),
        (Direct(), Recorded(responder="m"), "sft", [{"human": 3, "m": 1}, BOTH], None),
    ],
)
def test_a_training_set_that_selects_no_dialogue_is_refused(
    method: Any, responder: Any, objective: str, ratings: list[dict[str, int]], found: str | None, tmp_path: Path
) -> None:
    of, store = made(tmp_path, *ratings)
    wanted = sets(of, method, responder, objective=objective)
    if found is None:
        check_sets([wanted], in_store(store))
        return
    with pytest.raises(ValueError, match=rf"of {found}.*leave the regimes with {objective} out of grid.regime"):
        check_sets([wanted], in_store(store))
    held = sets(of, method, responder, objective=objective, purpose="heldout")
    check_sets([held], in_store(store))


def test_a_judges_scores_the_other_side_and_dialogues_not_made_are_not_looked_at(tmp_path: Path) -> None:
    of, store = made(tmp_path, {})
    check_sets([sets(of, ImproveHuman(), ASKED, good=4.0)], in_store(store))
    check_sets([sets(of, ImproveHuman(), ASKED, objective="dpo", purpose="heldout", split="test")], in_store(store))
    check_sets([sets(of, ImproveHuman(), ASKED)], in_store(Store.open(str(tmp_path / "empty"))))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"limit": 1},
            "'random', test_fraction = .*, data.limit = 1: no (train|test) dialogue is left.*another seed.*, or raise",
        ),
        (
            {"split": {"type": "official"}},
            "'official', data.limit = none: no test dialogue is left .train 24, test 0.; .*that has both$",
        ),
    ],
)
def test_a_run_asks_nobody_when_a_side_of_the_split_is_empty(data: dict[str, Any], told: str, tmp_path: Path) -> None:
    source = {"type": "jsonl", "path": str(tmp_path / "dialogues.jsonl")}
    x = tiny(tmp_path, data={"source": source, "split": {"type": "random", "test_fraction": 0.25}} | data)
    store = Store.open(str(tmp_path / "store"))
    asked: list[str] = []
    lanes = [
        Lane("asking", lane.model_of, lambda *a: asked.append(""), lambda c: False) if lane.name == "asking" else lane
        for lane in LANES
    ]
    report = lower(x).report
    with pytest.raises(ValueError, match=f"data.split = {told}"):
        plan.text(x, lower(x), [report], Profile(store=str(tmp_path / "store")))
    with pytest.raises(ValueError, match=f"data.split = {told}"):
        runner.run([report], Context(store, Profile(ask=Asking(workers=0)), Progress(out=lambda line: None)), lanes)
    assert not asked


def test_twins_of_the_test_may_be_all_that_there_was_to_learn_from(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "my cat ran away from home last night and I miss her"}]
    rows = [{"id": side, "turns": turns, "human_reply": "oh", "split": side} for side in ("train", "test")]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    of = dialogues.stage(parse({"type": "jsonl", "path": str(tmp_path / "d.jsonl")}), OfficialSplit())
    store = Store.open(str(tmp_path / "store"))
    dialogues.make(of, store, store.writer(of))
    with pytest.raises(ValueError, match=r"no train dialogue is left .train 0, test 1, twin_of_test 1.; students"):
        check_sides([sets(of, Human(), None)], in_store(store))
    check_sides([sets(of, Human(), None, purpose="heldout", split="test")], in_store(store))


def without_ratings(folder: Path) -> None:
    file = folder / "dialogues.jsonl"
    rows = [json.loads(line) | {"ratings": {}} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))


ARMS = 'method = "improve_human"\nstrategy = "naive"\n[[arms]]\nmethod = "direct"'


@pytest.mark.parametrize("until", ["replies", "one"])
def test_a_run_that_ends_at_the_replies_asks_nobody_when_the_sets_behind_them_lack_ratings(
    until: str, tmp_path: Path
) -> None:
    """And the same of the plan, before the dialogues are made and after; of dialogues alone nothing is refused."""
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace('method = "direct"', ARMS))
    (tmp_path / "here.toml").write_text(f'store = "{tmp_path}/store"\n[ask]\nworkers = 0\n')
    on = str(tmp_path / "here.toml")
    without_ratings(tmp_path)
    lowered = lower(experiment.load(str(file)))
    asked = next(s for s in walk([lowered.report]) if s.label.startswith("rule-teacher"))
    end = until if until == "replies" else f"{asked.kind}/{asked.key}"
    with pytest.raises(ValueError, match="its human reply has no rating"):
        plan.plan(str(file), on, None, until=end)
    assert plan.plan(str(file), on, None, until="dialogues") == 0
    assert run.run(str(file), on, None, until="dialogues") == 0
    with pytest.raises(ValueError, match="its human reply has no rating"):
        run.run(str(file), on, None, until=end)
    assert Store.open(str(tmp_path / "store")).files.list("ledger", recursive=True) == []
    with pytest.raises(ValueError, match="its human reply has no rating"):
        plan.plan(str(file), on, None, until=end)
    assert plan.plan(str(file), on, None, only=["method=direct regime=sft"], until="replies") == 0, (
        "what is left needs none"
    )


def test_a_run_that_ends_at_the_replies_asks_nobody_for_a_judge_that_there_is_not(tmp_path: Path) -> None:
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace('"rule-judge-1"', '"gpt-9"'))
    for told in (run.run, plan.plan):
        with pytest.raises(ValueError, match=r"judge.models = 'gpt-9': .* 'embedded' has only 'rule-judge-1'"):
            told(str(file), None, str(tmp_path / "store"), until="replies")


def test_a_run_asks_nobody_when_ratings_are_lacking(tmp_path: Path) -> None:
    """The teacher is asked from the driver, without Ray: its lane could begin as soon as the dialogues are there."""
    arms = [{"method": "improve_human", "strategy": "naive"}]
    x = tiny(tmp_path, arms=arms)
    without_ratings(tmp_path)
    store = Store.open(str(tmp_path / "store"))
    asked: list[str] = []
    lanes = [
        lane
        if lane.name != "asking"
        else Lane("asking", lane.model_of, lambda *a: asked.append("asked"), lambda c: False)
        for lane in LANES
    ]
    report = lower(x).report
    with pytest.raises(ValueError, match="its human reply has no rating"):
        runner.run([report], Context(store, Profile(ask=Asking(workers=0)), Progress(out=lambda line: None)), lanes)
    assert not asked
    assert all(s.kind != "dialogues" for s in missing([report], store.done)), "the dialogues stay"
    assert next(iter(store.get(report.inputs["dialogues"]).read(Dialogue))).ratings == {}
