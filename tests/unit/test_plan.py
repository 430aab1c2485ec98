"""What `empathy plan` says before anything runs: counted by hand, or by an independent way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.profile import Profile, ProviderPlace
from empathy import experiment, replies
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.records import Dialogue
from empathy.requests import Answer
from empathy.sources import parse
from empathy.sources.reader import Reader
from empathy.specs import DialoguesSpec, RepliesSpec, Teacher
from empathy.stages import Stage, missing, walk
from empathy.store import Store
from jobs import choose, cli, plan
from jobs.arms import Index, of_arm, users
from jobs.estimate.calls import Bill, bills
from jobs.estimate.compute import work
from jobs.estimate.held import Held
from jobs.estimate.shapes import from_config, known, shape_of
from jobs.estimate.sight import Sight
from jobs.estimate.storage import storage
from jobs.estimate.view import View
from serving.ledger import Ledger
from tests.experiments import tiny, tiny_file

N = 24


def view_of(x: Experiment, store: Store) -> tuple[Lowered, list[Stage], View]:
    lowered = lower(x)
    stages = list(walk([lowered.report]))
    finished = store.finished(stages)
    return lowered, missing([lowered.report], lambda s: s.key in finished), View(stages, finished, store)


def dialogues_of(lowered: Lowered) -> list[Dialogue]:
    """The dialogues that the stage would make."""
    stage = lowered.report.inputs["dialogues"]
    assert isinstance(stage.spec, DialoguesSpec)
    source = parse({"type": stage.spec.source, **stage.spec.options, **stage.locator})
    return list(Reader(stage.spec, source, None).sampled())


def bill_of(found: Sequence[Bill], model: str) -> Bill:
    return next(b for b in found if b.model.startswith(model))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


# ---------------------------------------------------------------- calls


def test_the_teacher_is_asked_once_a_dialogue_with_the_tokens_of_its_prompts(tmp_path: Path, store: Store) -> None:
    lowered, to_make, view = view_of(tiny(tmp_path, n=N), store)
    (stage,) = [s for s in to_make if isinstance(s.spec, RepliesSpec) and isinstance(s.spec.responder, Teacher)]
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, Teacher)
    requests = [next(replies.ask(stage.spec.responder, d, None)) for d in dialogues_of(lowered)]
    sent_chars = sum(len(turn.content) for r in requests for turn in r.messages)
    bill = bill_of(bills(to_make, view, Held(None), Profile()), "rule-teacher")
    assert (bill.low.requests, bill.high.requests) == (N, N)
    assert bill.low.tokens_in == pytest.approx(sent_chars / 4 + 4 * N)
    assert bill.low.tokens_out == pytest.approx(N * 28 * 4 / 3)
    assert bill.high.tokens_out == N * 200


def test_verdicts_are_counted_in_both_orders_and_at_most_three_attempts(tmp_path: Path, store: Store) -> None:
    lowered, to_make, view = view_of(tiny(tmp_path, n=N), store)
    n = sum(d.split == "test" for d in dialogues_of(lowered))
    bill = bill_of(bills(to_make, view, Held(None), Profile()), "rule-judge")
    assert bill.low.requests == (2 * 3 + 2) * 2 * n, "2 students by 3 opponents, their base by 2, in 2 orders"
    assert bill.high.requests == 3 * bill.low.requests
    assert bill.high.tokens_out == bill.high.requests * 700


def test_a_chat_of_three_turns_is_three_requests_that_grow(tmp_path: Path, store: Store) -> None:
    arms = [{"method": "improve_human", "strategy": ["sequential"]}]
    lowered, to_make, view = view_of(tiny(tmp_path, n=N, arms=arms), store)
    (stage,) = [s for s in to_make if isinstance(s.spec, RepliesSpec) and isinstance(s.spec.responder, Teacher)]
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, Teacher)
    said = "x" * 100  # 25 tokens
    sent_chars = messages = 0
    for dialogue in dialogues_of(lowered):
        asking = replies.ask(stage.spec.responder, dialogue, dialogue.human_reply)
        request = next(asking)
        for turn in range(3):
            sent_chars += sum(len(m.content) for m in request.messages)
            messages += len(request.messages)
            if turn < 2:
                request = asking.send(Answer(said))
    bill = bill_of(bills(to_make, view, Held(None), Profile()), "rule-teacher")
    assert bill.low.requests == 3 * N
    assert messages == N * (1 + 3 + 5)
    per_answer = bill.low.tokens_out / bill.low.requests
    expected = sent_chars / 4 + 4 * messages + N * 3 * (per_answer - 25)  # 0 + 1 + 2 earlier answers are shown
    assert bill.low.tokens_in == pytest.approx(expected)


@pytest.mark.parametrize("method", ["improve_human", "improve_llm"])
def test_a_reply_to_improve_may_be_as_long_as_its_teacher_may_answer(method: str, tmp_path: Path, store: Store) -> None:
    """The human's is known; another answer of 28 words x 4/3 may have 200 tokens."""
    _, to_make, view = view_of(tiny(tmp_path, n=N, arms=[{"method": method, "strategy": "naive"}]), store)
    improved = next(s for s in to_make if s.kind == "replies" and " naive on " in s.label)
    (bill,) = bills([improved], view, Held(None), Profile())
    longer = 200 - 28 * 4 / 3 if method == "improve_llm" else 0
    assert bill.high.tokens_in - bill.low.tokens_in == pytest.approx(N * longer)


def test_what_the_ledger_holds_is_not_asked_again(tmp_path: Path, store: Store) -> None:
    lowered, to_make, view = view_of(tiny(tmp_path, n=N), store)
    stage = next(s for s in to_make if s.label.endswith(" direct"))
    assert isinstance(stage.spec, RepliesSpec)
    assert isinstance(stage.spec.responder, Teacher)
    with Ledger(store.files) as ledger:
        for dialogue in dialogues_of(lowered)[:10]:
            ledger.record(next(replies.ask(stage.spec.responder, dialogue, None)), Answer("I see."))
        bill = bill_of(bills(to_make, view, Held(ledger), Profile()), "rule-teacher")
    assert (bill.held, bill.low.requests, bill.high.requests) == (10, N - 10, N - 10)


def test_dollars_by_hand_a_batch_at_its_share_and_unknown_stays_unknown(tmp_path: Path, store: Store) -> None:
    x = tiny(tmp_path, n=N, teacher__provider="openai", teacher__model="gpt-4o", judge__provider="openai")
    _, to_make, view = view_of(x, store)
    at_once, batched = (
        bill_of(bills(to_make, view, Held(None), profile), "gpt-4o")
        for profile in (
            Profile(),
            Profile(
                providers={"openai": ProviderPlace(base_url="https://api.openai.com/v1", batch=True, batch_price=0.5)}
            ),
        )
    )
    usd = (at_once.low.tokens_in * 2.5 + at_once.low.tokens_out * 10) / 1e6
    assert at_once.usd(at_once.low) == pytest.approx(usd)
    assert batched.usd(batched.low) == pytest.approx(usd / 2)
    judge = bill_of(bills(to_make, view, Held(None), Profile()), "rule-judge")
    assert judge.usd(judge.low) is None
    said = plan.text(x, lower(x), [lower(x).report], Profile(store=store.url), max_usd=5)
    assert f'unknown price: add [prices."{judge.model}"] to the profile' in said
    assert "dollars in all: at least" in said
    assert plan._total([judge], None) == "dollars in all: unknown"
    assert "a cap cannot be kept while a price is unknown" in said


# ---------------------------------------------------------------- students


def test_parameters_are_the_published_ones() -> None:
    """Published counts (model cards on the hub) less the norms and biases, which the shapes leave out: 65, 65, 33
    and 49 norms of the hidden width, and Qwen's biases of q, k and v."""
    published = {
        "meta-llama/Llama-3.1-8B": 8_030_261_248 - 65 * 4096,
        "mistralai/Mistral-7B-v0.3": 7_248_023_552 - 65 * 4096,
        "meta-llama/Llama-3.2-1B": 1_235_814_400 - 33 * 2048,
        "Qwen/Qwen2.5-0.5B": 494_032_768 - 49 * 896 - 24 * (896 + 128 + 128),
    }
    assert {name: known()[name].parameters for name in published} == published


def test_a_config_json_tells_the_same_shape() -> None:
    config = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    }
    assert from_config(config) == known()["meta-llama/Llama-3.1-8B"]
    assert from_config({"d_model": 512}) is None


def test_work_and_storage_of_the_tiny_student_by_hand(tmp_path: Path, store: Store) -> None:
    """hidden 64, 2 layers, q and o 64 x 64, k and v 64 x 32, feed-forward three of 64 x 64, vocabulary 400."""
    lowered, to_make, view = view_of(tiny(tmp_path, n=N), store)
    shape = shape_of(lowered.cells[0].checkpoint)
    assert shape is not None
    n = 2 * (5 * 64 * 64 + 2 * 64 * 32) + 64 * 400
    assert (shape.multiplied, shape.parameters) == (n, n + 64 * 400)
    assert shape.adapter(8) == 2 * 8 * (5 * 128 + 2 * 96)
    dialogues = dialogues_of(lowered)
    train = [d for d in dialogues if d.split == "train"]
    sft = next(s for s in to_make if s.label.startswith("tiny sft "))
    # Method direct on unrated teacher replies, taken as Good: SFT where the human is Good, two examples each.
    pairs = sum(d.ratings["human"] == 3 for d in train)
    chars = sum(len(f"Speaker: {d.turns[0].content}") for d in dialogues) / len(dialogues)
    human_chars = sum(len(d.human_reply or "") for d in dialogues) / len(dialogues)
    tokens = pairs * 2 * (chars / 4 + 8 + (28 * 4 / 3 + human_chars / 4) / 2)
    done = work([sft], view, Profile())["training"]
    assert done.tokens == pytest.approx(tokens)
    assert done.hours == pytest.approx(4 * n * tokens / (989e12 * 0.1) / 3600)
    assert storage([sft], view).weights_bytes == 4 * shape.adapter(8)


def test_the_prompt_of_a_pair_is_counted_as_often_as_it_is_read(tmp_path: Path, store: Store) -> None:
    """Once where rows share what they begin with, else twice; two replies either way."""
    lowered, to_make, view = view_of(tiny(tmp_path, n=N), store)
    dpo = next(s for s in to_make if s.label.startswith("tiny sft+dpo "))
    dialogues = dialogues_of(lowered)
    chars = sum(len(f"Speaker: {d.turns[0].content}") for d in dialogues) / len(dialogues)
    pairs = sum(d.ratings["human"] < 3 for d in dialogues if d.split == "train")
    tokens = [
        work([dpo], view, Profile.model_validate({"train": train}))["training"].tokens
        for train in ({}, {"share_prefixes": False}, {"zero_stage": 3}, {"gpus_per_worker": 1})
    ]
    assert tokens[1] - tokens[0] == pytest.approx(pairs * (chars / 4 + 8))
    assert tokens[2] == tokens[3] == tokens[1]


def test_a_student_that_nobody_knows_is_unknown_not_nought(tmp_path: Path, store: Store) -> None:
    students = {"new": {"model": "somebody/new-model"}}
    x = tiny(tmp_path, n=N, students=students)
    _, to_make, view = view_of(x, store)
    done = work(to_make, view, Profile())
    assert done["training"].unknown == done["training"].stages == 2
    assert storage(to_make, view).unknown_weights == 2
    assert "2 stages unknown" in plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))


# ---------------------------------------------------------------- what n can see


def test_250_prompts_see_what_evaluation_says() -> None:
    """evaluation.md: n = 250 gives +-6.2 points at 0.5; .9 against .8 paired needs about 8 points."""
    sight = Sight(250)
    assert sight.half_width() == pytest.approx(1.96 * (0.25 / 250) ** 0.5, rel=1e-3) == pytest.approx(0.062, abs=5e-4)
    assert 0.07 < sight.paired(0.9) < 0.085


def test_two_clusters_tell_nothing(tmp_path: Path, store: Store) -> None:
    """t(1) = 12.7: an interval wider than all win rates there are."""
    assert not Sight.of_groups(["a", "b"] * 6).tells
    assert not Sight.of_groups(["a"] * 100).tells
    assert Sight.of_groups([str(k) for k in range(12)]).tells, "t(11) * (0.25 / 12) ** 0.5 = 0.318"
    file = tiny_file(tmp_path, n=N)
    rows = [json.loads(line) for line in (tmp_path / "dialogues.jsonl").read_text().splitlines()]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps(row | {"group": "g"}) for row in rows))
    x = experiment.load(file)
    said = plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))
    assert "test prompts (1 cluster): how well a win rate is known cannot be told with so few" in said
    assert "two arms differ" not in said


def test_clusters_widen_by_their_size_and_by_t() -> None:
    pairs = Sight.of_groups([str(k // 2) for k in range(62)])  # 31 clusters of 2: t(30) = 2.0423
    assert (pairs.n, pairs.clusters, pairs.design) == (62, 31, 1.05)
    assert pairs.quantile == pytest.approx(2.0423, abs=2e-4)
    assert pairs.half_width() == pytest.approx(2.0423 * (0.25 * 1.05 / 62) ** 0.5, rel=1e-3)
    uneven = Sight.of_groups(["a"] * 3 + ["b"])  # m = (9 + 1) / 4
    assert uneven.design == pytest.approx(1 + 1.5 * 0.05)


# ---------------------------------------------------------------- the graph


STRATEGIES = ["naive", "all_three", "cognitive", "affective", "compassionate", "combined"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"judge__models": ["rule-judge-1", "rule-judge-2"]},
        {"judge__opponents": ["teacher", "naive"]},
        {"judge__opponents": ["human"]},
        {"rubric": {"provider": "embedded", "model": "rule-judge-1"}},
    ],
)
def test_arms_alone_are_what_each_would_make_as_an_experiment_of_its_own(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Also an arm that pools or improves the replies of others: its base is not judged against those."""
    arms = [{"method": "direct"}, {"method": ["improve_human", "improve_llm"], "strategy": STRATEGIES}]
    lowered = lower(x := tiny(tmp_path, n=N, arms=arms, **changes))
    assert len(lowered.cells) == 13 * 2
    index, sizes = Index(lowered), []
    for cell in lowered.cells:
        report = lower(x, only=[cell.name]).report
        singly = {stage.key for stage in walk([report])}
        assert of_arm(lowered, cell, index) - {lowered.report.key} == singly - {report.key}, cell.name
        sizes.append(len(singly))
    assert users(lowered).total() == sum(sizes)


def test_students_alone_are_what_each_would_make_too(tmp_path: Path) -> None:
    students = {name: {"model": f"nobody/{name}"} for name in ("one", "two")}
    x = tiny(tmp_path, n=N, students=students, grid={"regime": ["sft", "dpo", "sft+dpo"], "seed": [0, 1]})
    lowered = lower(x)
    singly = [len(list(walk([lower(x, only=[cell.name]).report]))) for cell in lowered.cells]
    assert len(singly) == 2 * 3 * 2
    assert users(lowered).total() == sum(singly)


@pytest.mark.parametrize(
    ("until", "kinds"),
    [
        ("dialogues", {"dialogues"}),
        ("replies", {"dialogues", "replies"}),
        ("examples", {"dialogues", "replies", "examples"}),
        ("checkpoint", {"dialogues", "replies", "examples", "checkpoint", "logprobs"}),
    ],
)
def test_until_stops_after_a_kind(until: str, kinds: set[str], tmp_path: Path) -> None:
    lowered = lower(tiny(tmp_path, n=N))
    stages = list(walk(choose.targets(lowered, until)))
    assert {s.kind for s in stages} == kinds
    every = [s for s in walk([lowered.report]) if s.kind == until]
    wanted = [s for s in every if "checkpoint" not in s.inputs] if until == "replies" else every
    assert [s for s in stages if s.kind == until] == wanted


def test_a_plan_says_nothing_of_students_that_it_does_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, said = str(tiny_file(tmp_path)), {}
    for until in ("replies", "checkpoint", None):
        options = ["--until", until] if until else []
        assert cli.main(["plan", file, "--store", str(tmp_path / "store"), *options]) == 0
        said[until] = capsys.readouterr().out
    assert [until for until, text in said.items() if "the arms share work" in text] == [None]
    assert [until for until, text in said.items() if "students: tiny, tiny-sft-" in text] == ["checkpoint", None]


def test_of_many_students_few_are_named(tmp_path: Path) -> None:
    x = tiny(tmp_path, n=N, grid={"regime": ["sft"], "seed": list(range(9))})
    lowered = lower(x)
    assert len(lowered.checkpoints) == 10
    profile = plan.profiles.load(None, str(tmp_path / "store"))
    short, full = (plan.text(x, lowered, [lowered.report], profile, every=every) for every in (False, True))
    line = next(x for x in short.splitlines() if x.startswith("students: "))
    assert line.count(", ") == 7
    assert line.endswith(" and 2 more (--all lists them and every stage)")
    assert all(name in full for name in lowered.checkpoints)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            ["--until", "cherckpoint"],
            "did you mean 'checkpoint'? There are dialogues, replies, examples, checkpoint, logprobs, verdicts",
        ),
        (
            ["--only", "no-such-arm"],
            "no arm has 'no-such-arm'; there are\n  student   tiny\n  regime    sft, sft+dpo\n",
        ),
        (["--only", ""], "only = '': names no factor; leave it out for the whole grid"),
        (["--max-usd", "-1"], "0 or more"),
        (["--max-usd", "nan"], "0 or more"),
    ],
)
def test_wrong_choices_are_refused_with_what_exists(
    option: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "run"):
        assert cli.main([command, str(tiny_file(tmp_path)), "--store", str(tmp_path / "store"), *option]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_plan_of_a_part_counts_that_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = str(tiny_file(tmp_path)), str(tmp_path / "store")
    assert cli.main(["plan", file, "--store", store, "--only", "regime=sft direct", "--until", "checkpoint"]) == 0
    said = capsys.readouterr().out
    assert "1 trained student (" in said
    assert "checkpoint         2" in said, "the raised base and one student"
    assert "verdicts" not in said.split("students")[1]


def test_every_stage_is_listed_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", str(tiny_file(tmp_path)), "--store", str(tmp_path / "store"), "--all"])
    assert capsys.readouterr().out.count("  to make  ") == 31


def test_ratings_that_a_method_lacks_are_told_before_anything_is_spent(tmp_path: Path, store: Store) -> None:
    rows = [json.loads(line) for line in (tiny_file(tmp_path, n=N).parent / "dialogues.jsonl").read_text().splitlines()]
    bare: list[dict[str, Any]] = [{k: v for k, v in row.items() if k != "ratings"} for row in rows]
    (tmp_path / "bare.jsonl").write_text("\n".join(json.dumps(row) for row in bare))
    arms = [{"method": "improve_human", "strategy": "naive"}]
    x = tiny(tmp_path, n=N, data__source={"type": "jsonl", "path": str(tmp_path / "bare.jsonl")}, arms=arms)
    with pytest.raises(ValueError, match="no rating to select by"):
        plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda n, row: {"prompt" if k == "turns" else k: v for k, v in row.items()}, r"24 of 24 .*line 1: .*no such"),
        (lambda n, row: row if n else row | {"turns": []}, r"1 of 24 rows are no dialogues.*line 1: wrong_fields"),
        (lambda n, row: row | {"id": "same"}, "1 id occurs more than once, for example same"),
    ],
    ids=["a field of another name in every row", "one row", "ids"],
)
def test_rows_that_the_run_would_refuse_are_refused(change: Any, told: str, tmp_path: Path, store: Store) -> None:
    """Not told as a side of the split that is empty, or not at all."""
    file = tiny_file(tmp_path, n=N)
    rows = [json.loads(line) for line in (tmp_path / "dialogues.jsonl").read_text().splitlines()]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps(change(n, row)) for n, row in enumerate(rows)))
    x = experiment.load(file)
    with pytest.raises(ValueError, match=told):
        plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))


def test_wrong_rows_of_a_source_that_is_only_counted_are_refused_too(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were counted as no dialogues: a plan of 0 calls."""
    monkeypatch.setattr("jobs.estimate.corpus.MOST_READ", N - 1)
    file = tiny_file(tmp_path, n=N)
    text = (tmp_path / "dialogues.jsonl").read_text()
    (tmp_path / "dialogues.jsonl").write_text(text.replace('"turns"', '"talk"'))
    x = experiment.load(file)
    with pytest.raises(ValueError, match=r"24 of 24 rows are no dialogues.*turns is missing, talk: no such field"):
        plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))


@pytest.mark.parametrize(
    ("max_usd", "said"), [(100, "covers the high end"), (0.001, "may stop the run before its end")]
)
def test_a_cap_is_held_against_the_high_end(max_usd: float, said: str, tmp_path: Path, store: Store) -> None:
    judge = {"provider": "openai", "models": ["gpt-4o-mini"]}
    x = tiny(tmp_path, n=N, teacher__provider="openai", teacher__model="gpt-4o", judge=judge)
    lowered = lower(x)
    assert said in plan.text(x, lowered, [lowered.report], Profile(store=store.url), max_usd)


def test_regimes_that_an_arm_has_no_pairs_for_are_told(tmp_path: Path, store: Store) -> None:
    arms = [{"method": "direct"}, {"method": "human"}]
    x = tiny(tmp_path, n=N, arms=arms, grid={"regime": ["sft", "dpo", "sft+dpo"]})
    said = plan.text(x, lower(x), [lower(x).report], Profile(store=store.url)).splitlines()
    assert said[1].startswith("4 trained students; ")
    assert said[2] == "  method=human: no pairs to learn from by DPO, so not in the regimes dpo, sft+dpo"
    x = tiny(tmp_path, n=N)
    assert "no pairs" not in plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))


@pytest.mark.parametrize("methods", [["human"], ["direct", "human"]])
def test_an_arm_without_pairs_alone_with_dpo_is_refused(methods: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"arms.method = 'human': has no pairs .* add \"sft\" to grid.regime"):
        tiny(tmp_path, n=N, arms=[{"method": methods}], grid={"regime": ["dpo", "sft+dpo"]})
