"""What the plan says that arms save by sharing paid stages, against the plans of the arms alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.profile import Profile, ProviderPlace
from empathy.experiment import Experiment
from empathy.lower import Lowered, lower
from empathy.stages import Stage, walk
from empathy.store import Store
from jobs import plan
from jobs.arms import users
from jobs.estimate.calls import bills
from jobs.estimate.held import Held
from jobs.estimate.sharing import Saved, saved
from jobs.estimate.view import View
from tests.experiments import tiny

N = 24
ARMS = [{"method": "improve_llm", "strategy": ["naive", "all_three"]}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def grid(folder: Path) -> Experiment:
    """Two arms x two regimes; a teacher and a judge that are paid, and no verdicts between arms."""
    paid = {"provider": "openai", "models": ["gpt-4o-mini"], "opponents": ["base", "human", "teacher"]}
    return tiny(folder, n=N, arms=ARMS, teacher__provider="openai", teacher__model="gpt-4o", judge=paid)


def dollars(stages: list[Stage], store: Store, profile: Profile) -> tuple[float, float]:
    found = bills(stages, View(stages, set(), store), Held(None), profile)
    low, high = ([bill.usd(getattr(bill, end)) or 0.0 for bill in found] for end in ("low", "high"))
    return sum(low), sum(high)


def saved_by(lowered: Lowered, store: Store, profile: Profile) -> Saved:
    stages = list(walk([lowered.report]))
    return saved(stages, users(lowered), View(stages, set(), store), profile)


@pytest.mark.parametrize("batch", [False, True])
def test_it_is_what_the_arms_would_pay_alone_less_what_the_grid_pays(batch: bool, tmp_path: Path, store: Store) -> None:
    place = ProviderPlace(base_url="https://api.openai.com/v1", batch=batch, batch_price=0.5)
    x, profile = grid(tmp_path), Profile(store=store.url, providers={"openai": place})
    lowered = lower(x)
    whole = dollars(list(walk([lowered.report])), store, profile)
    alone = [dollars(list(walk([lower(x, only=[c.name]).report])), store, profile) for c in lowered.cells]
    assert len(alone) == 4
    found = saved_by(lowered, store, profile)
    assert found.low_usd == pytest.approx(sum(low for low, _ in alone) - whole[0])
    assert found.high_usd == pytest.approx(sum(high for _, high in alone) - whole[1])
    assert 0 < found.low_usd < found.high_usd
    said = f"that saves ${found.low_usd:,.2f} (low) to ${found.high_usd:,.2f} (high)"
    assert said in plan.text(x, lowered, [lowered.report], profile)


def test_by_hand_a_stage_of_four_arms_saves_three(tmp_path: Path, store: Store) -> None:
    """The teacher's own answers, which every arm improves on. Three more times N replies: of 28 words x 4/3, or of 200
    tokens, at $10 a million."""
    lowered = lower(grid(tmp_path))
    stages = list(walk([lowered.report]))
    direct = next(stage for stage in stages if stage.label == "gpt-4o direct")
    assert users(lowered)[direct.key] == 4
    found = saved([direct], users(lowered), View(stages, set(), store), Profile())
    assert found.low_usd == pytest.approx(3 * dollars([direct], store, Profile())[0])
    assert found.high_usd - found.low_usd == pytest.approx(3 * N * (200 - 28 * 4 / 3) * 10 / 1e6)


def test_without_a_price_it_is_unknown_and_without_a_bill_nothing_is_said(tmp_path: Path, store: Store) -> None:
    x = tiny(tmp_path, n=N, arms=ARMS)
    said = plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))
    assert "the arms share work" in said
    assert "that saves" not in said
    x = tiny(tmp_path, n=N, arms=ARMS, teacher__provider="openai", teacher__model="nobody-knows")
    assert saved_by(lower(x), store, Profile()) == Saved(0.0, 0.0, unknown=3)
    said = plan.text(x, lower(x), [lower(x).report], Profile(store=store.url))
    assert "the dollars that this saves are unknown" in said
