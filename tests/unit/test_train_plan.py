"""What a training session knows before anything heavy is loaded: order, cuts, and stages that do not fit together."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import chain as flat

import pytest

from empathy.specs import CheckpointSpec, Dpo, Full, HubBase, Lora, Sft
from empathy.stages import Stage
from empathy.store import Store
from empathy.train import check, order
from empathy.train.placement import Cut, Placement, cut
from tests.lessons import BASE, chain, demonstrations, examples, optimiser, preferences, raised, scored, tuned


@pytest.fixture
def store(tmp_path) -> Store:  # type: ignore[no-untyped-def]
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("examples_", "batch", "epochs", "expected"),
    [(100, 16, 3, 19), (96, 16, 3, 18), (10, 16, 1, 1), (10, 5, 0.5, 1), (30, 10, 0.1, 1)],
)
def test_steps(examples_: int, batch: int, epochs: float, expected: int) -> None:
    assert order.steps(examples_, batch, epochs) == expected


def test_every_epoch_shows_every_example_once_and_batches_are_full() -> None:
    made = order.batches(10, 4, 3, seed=7)
    assert [len(b) for b in made] == [4] * 8  # 30 examples, the last batch goes on into a fourth epoch
    stream = list(flat.from_iterable(made))
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]


def test_order_depends_on_the_seed_alone_and_is_the_same_in_every_process() -> None:
    assert order.batches(6, 3, 1, seed=0) != order.batches(6, 3, 1, seed=1)
    code = "from empathy.train import order; print(order.batches(6, 3, 1, seed=0))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert other.stdout.strip() == str(order.batches(6, 3, 1, seed=0))


@pytest.mark.parametrize(("workers", "micro"), [(1, 8), (1, 3), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_a_step_has_the_same_examples_however_it_is_cut(workers: int, micro: int) -> None:
    plan = order.batches(21, 8, 2, seed=3)
    lengths = [(7 * i) % 13 for i in range(21)]
    placed = cut(8, Placement(workers=workers, micro_batch=micro), workers)
    dealt = [order.micro_batches(plan, lengths, placed, rank) for rank in range(workers)]
    for step, batch in enumerate(plan):
        mine = slice(step * placed.accumulation, (step + 1) * placed.accumulation)
        assert Counter(i for rank in dealt for micro_ in rank[mine] for i in micro_) == Counter(batch)
    assert {len(m) for rank in dealt for m in rank} == {placed.micro_batch}


def test_cuts() -> None:
    assert cut(16, Placement(workers=2), 2) == Cut(2, 8, 1)
    assert cut(16, Placement(workers=2, micro_batch=2), 2) == Cut(2, 2, 4)
    assert cut(12, Placement(workers=1, micro_batch=5), 1) == Cut(1, 4, 3)  # "at most": 5 does not divide
    with pytest.raises(
        ValueError, match=r"batch_examples = 16 cannot be shared by workers = 3: set workers to one of \[1, 2, 4\]"
    ):
        cut(16, Placement(workers=3), 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers = 0: must be at least 1"),
        ({"micro_batch": 0}, "micro_batch = 0: must be at least 1"),
        ({"zero_stage": 4}, "zero_stage = 4: DeepSpeed has stages"),
    ],
)
def test_placements_that_cannot_be(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(**given)  # type: ignore[arg-type]


def test_a_chain_that_fits_passes(store: Store) -> None:
    check.stages(chain(store), store, Placement())


def test_inputs_must_be_finished_or_earlier(store: Store) -> None:
    base, sft, *_ = chain(store)
    with pytest.raises(FileNotFoundError, match=r"its input base .* is neither finished .* nor earlier in the list"):
        check.stages([sft, base], store, Placement())


def broken(store: Store, case: str) -> Stage:
    base, sft, _, dpo = chain(store)
    pairs, shown = dpo.inputs["examples"], sft.inputs["examples"]
    inputs = dict(dpo.inputs)
    if case == "other reference":
        return tuned(dpo.spec.objective, inputs | {"reference": scored(base, pairs)})
    if case == "other pairs":
        return tuned(dpo.spec.objective, inputs | {"examples": examples(store, "dpo", preferences(4, 8))})
    if case == "other tuning":
        return tuned(Dpo(optimiser=optimiser(), tuning=Lora(rank=4)), inputs)
    if case == "other base":
        return tuned(dpo.spec.objective, inputs | {"base": raised(store, seed=5)})
    if case == "other precision":
        return tuned(dpo.spec.objective, inputs, precision="bf16")
    if case == "no reference":
        return tuned(dpo.spec.objective, {"base": base, "examples": pairs})
    if case == "pairs for sft":
        return tuned(sft.spec.objective, {"base": base, "examples": pairs})
    if case == "adapter as base":
        return Stage(
            CheckpointSpec(base=BASE, objective=Sft(optimiser=optimiser(), tuning=Lora())), {"examples": shown}
        )
    if case == "dpo as base":
        return Stage(
            CheckpointSpec(base=BASE, objective=Dpo(optimiser=optimiser(), tuning=Full())), {"examples": pairs}
        )
    if case == "longer than positions":
        return raised(store, max_length_tokens=257)
    if case == "nothing":
        return Stage(CheckpointSpec(), {})
    assert case == "batch of 7"
    return tuned(Sft(optimiser=optimiser(batch_examples=7), tuning=Lora()), {"base": base, "examples": shown})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("other reference", "its reference was scored by .* base, but it starts from .* sft"),
        ("other pairs", "scored over other examples"),
        ("other tuning", "give both the same tuning"),
        ("other base", "stands on another base"),
        ("other precision", "precision = 'bf16', its reference's 'fp32'"),
        ("no reference", "input `reference` is missing; it has .*'base', 'examples'"),
        ("pairs for sft", "must be examples with objective = 'sft'"),
        ("adapter as base", 'a base is raised with tuning = "full"'),
        ("dpo as base", "make dpo a checkpoint of its own"),
        ("longer than positions", "max_length_tokens = 257 is more than the model's positions = 256"),
        ("nothing", "give a `base` .* or an `objective`"),
        ("batch of 7", "batch_examples = 7 cannot be shared by workers = 2"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_anything_is_loaded(store: Store, case: str, message: str) -> None:
    base, sft, reference, _ = chain(store)
    stage = broken(store, case)
    others = [
        s for s in (raised(store, seed=5), scored(base, chain(store)[3].inputs["examples"])) if s.key != stage.key
    ]
    with pytest.raises(ValueError, match=message):
        check.stages([base, *others, sft, reference, stage], store, Placement(workers=2))


def test_other_kinds_are_not_for_a_session(store: Store) -> None:
    shown = Stage(examples(store, "sft", demonstrations(4, 1)).spec, {}, label="other")
    with pytest.raises(ValueError, match="makes checkpoint and logprobs stages, not examples"):
        check.stages([shown], store, Placement())


def test_planning_a_training_loads_nothing_heavy() -> None:
    code = (
        "import sys; import empathy.train.check, empathy.train.launch, empathy.train.__main__, cluster.steps.training\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'ray', 'transformers', 'deepspeed', 'trl', 'peft', 'datasets'}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_found_base_whose_folder_is_gone_is_an_error_with_its_path(store: Store) -> None:
    from empathy.train.bench import pointed

    base = HubBase(model="llama", digest="0" * 64)
    stage = Stage(CheckpointSpec(base=base), {}, {"path": "/nowhere/llama"})
    with pytest.raises(ValueError, match=r"model = '/nowhere/llama': there is no config.json"):
        pointed(stage, base)
    assert pointed(
        Stage(CheckpointSpec(base=HubBase(model="org/name", revision="r1"))), HubBase(model="org/name", revision="r1")
    ) == ("org/name", "r1")
