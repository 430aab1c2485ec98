"""Experiment and profile files that would fail late, or tell a secret: refused when they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import profile as profiles
from empathy import experiment
from empathy.sources.clean import Bad, clean
from empathy.sources.jsonl import read_jsonl
from tests.experiments import tiny_file

SAME = """init = "random"
size = { vocab = 400, hidden = 64, layers = 2, heads = 2, kv_heads = 1, intermediate = 64, positions = 256 }
raise.source = { type = "jsonl", path = "RAISING" }
raise.optimiser = { learning_rate = 2e-3, epochs = 1, batch_examples = 8 }"""

CASES = {
    "no regime": ('["sft", "sft+dpo"]', "[]", "grid.regime"),
    "no seed": ('["sft", "sft+dpo"]', '["sft"]\nseed = []', "grid.seed"),
    "a seed below 0": ('["sft", "sft+dpo"]', '["sft"]\nseed = [-1]', "grid.seed.0 = -1"),
    "no method": ('method = "direct"', "method = []", "arms.0.method"),
    "a seed that no JSON holds": ("unrated_is_good", f"seed = {2**70}\nunrated_is_good", "teacher.seed"),
    "a name that is no folder's": ('"tiny"', f'"{"t" * 300}"', "name = "),
    "a student's name with a path": ("[students.tiny]", '[students."../x"]', "students.../x = '../x'"),
    "shared heads": ("kv_heads = 1", "kv_heads = 3", "size.kv_heads = 3: must divide size.heads = 2"),
    "few positions": ("max_length_tokens = 250", "max_length_tokens = 300", "students.tiny has 256 positions"),
    "no room for a prompt": (
        "[generate]\nmax_tokens = 16",
        "[generate]\nmax_tokens = 256",
        "generate.max_tokens = 256: ",
    ),
    "a student twice": ("[students.tiny.raise]", f"[students.twin]\n{SAME}\n[students.tiny.raise]", "is the same as"),
    "no test": ("test_fraction = 0.25", "test_fraction = 0.0", "test_fraction = 0"),
    "no train": ("test_fraction = 0.25", "test_fraction = 0.6, valid_fraction = 0.4", "nothing is left to train on"),
    "brackets": ("[data]", f"x = {'[' * 5000}\n[data]", "not valid TOML"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_experiment_is_refused(case: str, tmp_path: Path) -> None:
    old, new, said = CASES[case]
    file = tiny_file(tmp_path)
    text = file.read_text().replace(old, new, 1).replace("RAISING", str(tmp_path / "raising.jsonl"))
    file.write_text(text)
    with pytest.raises(ValueError, match=r"tiny\.toml") as told:
        experiment.load(file)
    assert said in str(told.value)
    assert "at least 1 item" not in str(told.value).partition("\n  ")[2].partition("\n")[2], "said once"


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my study: 1", "; 'my-study-1' is one"),
        ("../secret", "; 'secret' is one"),
        ("Café au lait", "; 'Cafe-au-lait' is one"),
        ("t" * 101, f"; '{'t' * 100}' is one"),
        ("心", "characters long"),
        ("", "characters long"),
    ],
)
def test_what_a_name_may_hold_is_said_in_words(name: str, better: str, tmp_path: Path) -> None:
    for old, new in (('"tiny"', f'"{name}"'), ("[students.tiny", f'[students."{name}"')):
        file = tiny_file(tmp_path)
        file.write_text(file.read_text().replace(old, new))
        with pytest.raises(ValueError, match=r"tiny\.toml") as told:
            experiment.load(file)
        said = str(told.value)
        assert (
            f" = {name!r}: a name has letters (A to Z, a to z), digits, _, . and - in it, begins with a letter" in said
        )
        assert said.endswith(better)


LR, MOST = "learning_rate = 1e-3", "Input should be less than or equal to"
ABSURD = {
    "epochs": (f"{LR}, epochs = 1", f"{LR}, epochs = 1e300", f"train.sft.epochs = 1e+300: {MOST} 10000"),
    "learning rate": (LR, "learning_rate = 50", "train.sft = ", "learning_rate = 50: must be at most 1"),
    "learning rate 0": (LR, "learning_rate = 0", "train.sft.learning_rate = 0: Input should be greater than 0"),
    "learning rate nan": (LR, "learning_rate = nan", "train.sft.learning_rate = nan: Input should be a finite number"),
    "raised too fast": ("learning_rate = 2e-3", "learning_rate = 2e3", "learning_rate = 2000: must be at most 1"),
    "decay": (LR, f"{LR}, weight_decay = inf", "train.sft.weight_decay = inf: Input should be a finite number"),
    "rank": ("[train]", "[train]\nlora = { rank = 1_000_000_000 }", f"train.lora.rank = 1000000000: {MOST} 512"),
    "reply": ("max_tokens = 16", f"max_tokens = {10**12}", f"generate.max_tokens = {10**12}: {MOST} 1000000"),
    "example": ("_tokens = 250", f"_tokens = {10**12}", f"train.max_length_tokens = {10**12}: {MOST} 1000000"),
    "base": ("layers = 2", f"layers = {10**9}", f"students.tiny.size.layers = {10**9}: {MOST} 10000"),
    "data's seed": ("part_rows", f"seed = {2**63}\npart_rows", f"data.seed = {2**63}: Input should be less than"),
    "split's seed": ("= 0.25 ", f"= 0.25, seed = {2**70} ", f"data.split.random.seed = {2**70}: Input should be less"),
    "repeats": ("[judge]", f"[judge]\nrepeats = {10**9}", f"judge.repeats = {10**9}: {MOST} 1000"),
    "temperature": ("[judge]", "[judge]\ntemperature = 1e9", f"judge.temperature = 1000000000.0: {MOST} 100"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_number_is_refused_with_its_bound(case: str, tmp_path: Path) -> None:
    old, new, *said = ABSURD[case]
    file = tiny_file(tmp_path)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"tiny\.toml") as told:
        experiment.load(file)
    assert all(part in str(told.value) for part in said), str(told.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "[train]\nworkers = 1_000_000_000",
            "train.workers = 1000000000: Input should be less than or equal to 100000",
        ),
        ("[ask]\nin_flight = 10_000_000_000", "ask.in_flight = 10000000000: Input should be less than or equal to"),
        ("[engine]\nkv_cache_gib = 1e300", "engine.kv_cache_gib = 1e+300: Input should be less than or equal to"),
        ("[engine]\ngpus = inf", "engine.gpus = inf: Input should be a finite number"),
        ("[ray]\ncpus = 1_000_000_000", "ray.cpus = 1000000000: Input should be less than or equal to 100000"),
    ],
)
def test_an_absurd_number_in_a_profile(table: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f"{table}\n")
    with pytest.raises(ValueError, match=r"p\.toml") as told:
        profiles.load(str(file))
    assert said in str(told.value)


MISSPELT = {
    "a field": ("unrated_is_good", "unrated_is_godo", "teacher.unrated_is_godo = True", "unrated_is_good"),
    "a source": ('type = "jsonl"', 'type = "josnl"', "data.source.type = 'josnl'", "jsonl"),
    "a split": ('type = "random"', 'type = "randon"', "data.split.type = 'randon'", "random"),
    "a method": ('method = "direct"', 'method = "dircet"', "unknown method 'dircet'", "direct"),
    "a strategy": ('"direct"', '"improve_llm"\nstrategy = "congitive"', "strategy = 'congitive'", "cognitive"),
    "a variant": (
        '"direct"',
        '"direct"\nstrategy = "chain_of_empathy.cbtt"',
        "strategy = 'chain_of_empathy.cbtt'",
        "chain_of_empathy.cbt",
    ),
    "a screen": ('"direct"', '"direct"\nscreens = ["cutoff"]', "unknown screen 'cutoff'", "cut_off"),
    "a regime": ('"sft+dpo"]', '"stf+dpo"]', "grid.regime.1 = 'stf+dpo'", "sft+dpo"),
    "a judge's mode": ("[judge]", '[judge]\nmode = "robots"', "judge.mode = 'robots'", "robust"),
    "an opponent": ("[judge]", '[judge]\nopponents = ["humans"]', "judge.opponents.0 = 'humans'", "human"),
    "a student": ("[grid]", '[grid]\nstudent = "tinny"', "grid.student = 'tinny'", "tiny"),
    "a teacher": ('"direct"', '"direct"\nteacher = "rule-teacher"', "arms.teacher = 'rule-teacher'", "rule-teacher-1"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_of_a_misspelt_name_the_right_one_is_told(case: str, tmp_path: Path) -> None:
    old, new, said, meant = MISSPELT[case]
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"tiny\.toml") as told:
        experiment.load(file)
    assert said in str(told.value)
    assert f", did you mean {meant!r}? There are " in str(told.value)


def test_a_provider_that_is_misspelt() -> None:
    with pytest.raises(ValueError, match=r"provider = 'opnai': unknown, did you mean 'openai'\? There are embedded, "):
        profiles.Profile().provider("opnai")


def test_a_wrong_item_is_not_a_short_list_too(tmp_path: Path) -> None:
    file = tiny_file(tmp_path)
    file.write_text(file.read_text().replace('method = "direct"', 'method = "dircet"'))
    with pytest.raises(ValueError, match="unknown method 'dircet'") as told:
        experiment.load(file)
    assert len(str(told.value).splitlines()) == 2


def test_a_byte_order_mark_is_no_fault_and_other_bytes_name_the_file(tmp_path: Path) -> None:
    file = tiny_file(tmp_path)
    text = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + text)
    assert experiment.load(file).name == "tiny"
    file.write_bytes(text + b"# \xff\n")
    with pytest.raises(ValueError, match=r"tiny\.toml: not valid TOML"):
        experiment.load(file)


@pytest.mark.parametrize("url", ["not a url", "", "ftp://h/v1", "http://h:99999/v1", "file:///etc/passwd", "http://"])
def test_a_base_url_that_is_none(url: str, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f'[providers.x]\nbase_url = "{url}"\n')
    with pytest.raises(ValueError, match=r"providers\.x.*no server's address"):
        profiles.load(str(file))


@pytest.mark.parametrize(
    "table",
    [
        'api_key = "sk-planted-0123456789"\nbase_url = "http://h/v1"',
        'token = "planted"\nbase_url = "http://h/v1"',
        'key_env = "sk-planted-0123456789"\nbase_url = "http://h/v1"',
        'base_url = "http://me:planted@h/v1"',
        'base_url = "http://me:planted@h/v1"\nengine = "folder"',
    ],
)
def test_a_secret_in_a_profile_is_refused_and_not_told(table: str, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f"[providers.x]\n{table}\n")
    with pytest.raises(ValueError, match=r"providers\.x") as told:
        profiles.load(str(file))
    assert "planted" not in str(told.value)


def test_a_key_in_the_place_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[providers.x]\nkey_env = "my key"\nbase_url = "http://h/v1"\n')
    with pytest.raises(ValueError, match=r"providers\.x\.key_env.*: give the name of the environment variable"):
        profiles.load(str(file))


def test_the_embedded_provider_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[providers.embedded]\nbase_url = "http://h/v1"\n')
    with pytest.raises(ValueError, match=r"providers\.embedded"):
        profiles.load(str(file))


def test_an_empty_store_is_not_the_default_one() -> None:
    """`--store "$STORE"` with the variable not set."""
    with pytest.raises(ValueError, match="store = ''"):
        profiles.load(None, "")


def test_lines_that_no_parser_takes_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("[" * 200_000 + "\n" + '{"id": "a", "ratings": {"human": ' + "9" * 5000 + "}}\n")
    rows = list(read_jsonl(file))
    assert [row.reason for row in rows if isinstance(row, Bad)] == ["unreadable_row", "unreadable_row"]


@pytest.mark.parametrize(
    ("name", "reason"), [("\\ud800", "not_unicode"), ("\\u0000", "nul"), ("x" * 30_000, "long_turn")]
)
def test_names_of_responders_are_looked_at_too(name: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    turns = '"turns": [{"role": "user", "content": "x"}]'
    file.write_text(f'{{"id": "a", {turns}, "recorded": {{"{name}": "y"}}}}\n')
    (row,) = read_jsonl(file)
    assert not isinstance(row, Bad)
    found = clean(row)
    assert isinstance(found, Bad)
    assert found.reason == reason
