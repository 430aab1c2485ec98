"""Which providers a run needs, and what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import providers
from cluster.profile import Profile, ProviderPlace
from empathy.lower import lower
from empathy.stages import walk
from tests.experiments import tiny


def test_models_by_provider(tmp_path: Path) -> None:
    stages = walk([lower(tiny(tmp_path)).report])
    assert providers.models(stages) == {"embedded": {"rule-teacher-1", "rule-judge-1"}}


def test_a_missing_key_is_named_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = {"provider": "openai", "models": ["gpt-4o-mini"]}
    stages = list(walk([lower(tiny(tmp_path, judge=judge)).report]))
    with pytest.raises(ValueError, match="OPENAI_API_KEY"), providers.ready(stages, Profile()):
        raise AssertionError("not reached")


def test_an_own_engine_serves_one_model(tmp_path: Path) -> None:
    profile = Profile(providers={"own": ProviderPlace(engine=str(tmp_path))})
    with pytest.raises(ValueError, match="one model"), providers.own_engine("own", {"a", "b"}, profile):
        raise AssertionError("not reached")


def test_a_provider_is_a_url_or_an_engine() -> None:
    with pytest.raises(ValueError, match="either base_url"):
        ProviderPlace()
    with pytest.raises(ValueError, match="either base_url"):
        ProviderPlace(base_url="http://x/v1", engine="y")
