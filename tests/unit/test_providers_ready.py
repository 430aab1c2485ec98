"""Which providers a run needs, and what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import profile as profiles
from cluster import providers
from cluster.profile import Profile, ProviderPlace
from empathy.lower import lower
from empathy.stages import walk
from jobs import plan
from serving.providers import Batching
from tests.experiments import tiny
from tests.tiny import TEMPLATE, tiny_student


def test_models_by_provider(tmp_path: Path) -> None:
    stages = walk([lower(tiny(tmp_path)).report])
    assert providers.models(stages) == {"embedded": {"rule-teacher-1", "rule-judge-1"}}


def test_a_missing_key_is_named_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = {"provider": "openai", "models": ["gpt-4o-mini"]}
    stages = list(walk([lower(tiny(tmp_path, judge=judge)).report]))
    with pytest.raises(ValueError, match="OPENAI_API_KEY"), providers.ready(stages, Profile()):
        raise AssertionError("not reached")


def test_what_the_profile_says_of_a_provider_reaches_it() -> None:
    table = {"base_url": "http://x/v1", "in_flight": 3, "timeout_s": 7, "served": ["m-turbo"]} | {
        "attempts": 2,
        "patience_s": 30,
    }
    batch = {"batch": True, "batch_poll_s": 9, "batch_requests": 100, "batches_at_once": 2, "batch_price": 0.4}
    profile = Profile.model_validate({"providers": {"live": table, "batched": table | batch}})
    live, batched = (providers.place_of(name, profile) for name in ("live", "batched"))
    assert (live.base_url, live.in_flight, live.timeout_s, live.served) == ("http://x/v1", 3, 7.0, ("m-turbo",))
    assert (live.attempts, live.patience_s) == (2, 30.0)
    assert live.batch is None
    assert batched.batch == Batching(poll_s=9, requests=100, at_once=2, price=0.4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"judge__models": ["gpt-9"]}, "judge.models = 'gpt-9': the provider 'embedded' has only 'rule-judge-1'"),
        ({"judge__models": ["rule-judge-1", "rule-teacher-1"]}, "judge.models = 'rule-teacher-1': .* 'rule-judge-1'"),
        ({"teacher__model": "gpt-9"}, "teacher.model = 'gpt-9': the provider 'embedded' has only 'rule-teacher-1'"),
        (
            {"ratings": {"provider": "embedded", "model": "gpt-9"}, "teacher__unrated_is_good": False},
            "ratings.model = 'gpt-9': the provider 'embedded' has only 'rule-judge-1'",
        ),
    ],
)
def test_a_model_that_the_embedded_provider_has_not_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    x = tiny(tmp_path, **changes, arms=[{"method": "improve_human", "strategy": "naive"}, {"method": "direct"}])
    lowered = lower(x)
    with pytest.raises(ValueError, match=told), providers.ready(list(walk([lowered.report])), Profile()):
        raise AssertionError("not reached")
    with pytest.raises(ValueError, match=told):
        plan.text(x, lowered, [lowered.report], Profile(store=str(tmp_path / "store")))


def own(source: Path | str, *names: str) -> providers.OwnModel:
    profile = Profile(providers={"own": ProviderPlace(engine=str(source))})
    return providers.own_model("own", set(names or ["meta-llama/Any-8B"]), profile)


def test_an_own_engine_serves_one_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'own' serves one model.*asked for a, b.*\[providers\.NAME\]"):
        own(tmp_path, "a", "b")


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    field = r"\[providers\.own\] engine = "
    with pytest.raises(ValueError, match=field + f"'{tmp_path}/none': there is no such folder"):
        own(tmp_path / "none")
    with pytest.raises(ValueError, match=field + r".*there is no config\.json"):
        own(tmp_path)
    with pytest.raises(ValueError, match=field + r"'a/b/c': no folder here, and the model hub"):
        own("a/b/c")


def test_a_model_with_weights_needs_a_chat_template(tmp_path: Path) -> None:
    assert own(tiny_student(tmp_path / "chat")).template == TEMPLATE
    (tmp_path / "chat" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"\[providers\.own\] engine.*no chat template"):
        own(tmp_path / "chat")


def test_a_table_for_a_known_provider_need_not_say_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "profile.toml"
    file.write_text('[providers.openai]\nrequests_per_minute = 500\n[providers.google]\nkey_env = "MY_KEY"\n')
    openai, google = profiles.load(str(file)).provider("openai"), profiles.load(str(file)).provider("google")
    assert (openai.base_url, openai.key_env) == ("https://api.openai.com/v1", "OPENAI_API_KEY")
    assert openai.requests_per_minute == 500
    assert google.base_url is not None
    assert google.key_env == "MY_KEY"


def test_a_place_of_its_own_takes_nothing_of_the_known_one(tmp_path: Path) -> None:
    """A server or an engine under a known name wants no key of that provider's: it would be sent to others."""
    file = tmp_path / "profile.toml"
    file.write_text('[providers.openai]\nbase_url = "http://10.0.0.1/v1"\n[providers.google]\nengine = "some/model"\n')
    profile = profiles.load(str(file))
    assert profile.provider("openai").key_env is None
    assert (profile.provider("google").base_url, profile.provider("google").key_env) == (None, None)
    file.write_text("[providers.azure]\nrequests_per_minute = 500\n")
    with pytest.raises(ValueError, match="either base_url"):
        profiles.load(str(file))


def test_a_provider_is_a_url_or_an_engine() -> None:
    with pytest.raises(ValueError, match="either base_url"):
        ProviderPlace()
    with pytest.raises(ValueError, match="either base_url"):
        ProviderPlace(base_url="http://x/v1", engine="y")
