"""The commands that need no cluster: what they print, what they refuse, what they import."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import profile as profiles
from empathy import experiment, version
from empathy.lower import lower
from empathy.records import Dialogue, Reply
from empathy.store import Store
from jobs import choose, cli, explain, run, submit
from jobs.page import folder
from tests.experiments import tiny, tiny_file

DEMO = str(Path(__file__).parents[2] / "jobs" / "experiments" / "demo.toml")


def test_planning_imports_neither_ray_nor_torch_nor_pandas(tmp_path: Path) -> None:
    """Also where it looks at the data, as it does here: pandas alone takes most of a second."""
    code = (
        "import json, sys; from jobs import cli; code = cli.main(sys.argv[1:]); "
        "print(json.dumps([code, sorted({'ray', 'torch', 'vllm', 'transformers', 'pandas'} & set(sys.modules))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", DEMO, "--store", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_plan_counts_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(tiny_file(tmp_path)), "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "2 trained students (1 arm x 2 regimes x 1 student x 1 seed); 31 stages, 31 to make" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "nowhere.toml"], "nowhere.toml"),
        (
            ["plan", DEMO, "--on", "nowhere"],
            "on = 'nowhere': no such file, and no profile that ships; those are gpus, laptop",
        ),
        (["plan", DEMO, "--store", "ftp://x"], "unknown scheme"),
        (["report", DEMO], "empathy run"),
    ],
)
def test_refusals_are_one_message_and_exit_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


def test_run_refuses_a_store_it_may_not_write_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["run", str(tiny_file(tmp_path)), "--store", str(tmp_path / "file" / "store")]) == 2
    assert "store" in capsys.readouterr().err


def test_a_part_of_the_grid_has_a_page_of_its_own(tmp_path: Path) -> None:
    profile = profiles.Profile(reports=str(tmp_path))
    whole, part = (folder(profile, "paper", only) for only in ((), ["regime=sft strategy=*naive"]))
    assert whole == tmp_path / "paper"
    assert part.parent == whole
    assert part.name.startswith("only-regime=sft_strategy=_naive-")
    others = [["regime=sft strategy=?naive"], ["regime=sft", "strategy=*naive"], ["x" * 200], ["x" * 201], ["../.."]]
    pages = [folder(profile, "paper", only) for only in others]
    assert len({part, *pages}) == 6
    assert {page.parent for page in pages} == {whole}
    assert all(len(page.name) < 100 for page in pages)


def test_the_command_of_a_page_says_everything_that_chose_it() -> None:
    command = run.again("x.toml", "p.toml", "/s", ["regime=sft strategy=naive"])
    args = cli.parser().parse_args(command.split()[1:2] + shlex.split(command)[2:])
    assert (args.file, args.on, args.store, args.only) == ("x.toml", "p.toml", "/s", ["regime=sft strategy=naive"])


@pytest.mark.parametrize("command", [["report"], ["trace", "d1"], ["plan"], ["run"]])
def test_only_chooses_arms_in_every_command(command: list[str]) -> None:
    assert cli.parser().parse_args([*command, "x.toml", "--only", "a", "--only", "b"]).only == ["a", "b"]


def test_trace_still_takes_arm() -> None:
    assert cli.parser().parse_args(["trace", "d1", "x.toml", "--arm", "a"]).only == ["a"]


def test_one_stage_is_and_two_are() -> None:
    assert [run.not_made(n) for n in (1, 2)] == ["1 stage is not made", "2 stages are not made"]


@pytest.mark.parametrize("command", ["plan", "report"])
def test_a_store_that_cannot_be_read_is_one_message(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    url = tmp_path / "file" / "store"
    assert cli.main([command, str(tiny_file(tmp_path)), "--store", str(url)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"empathy {command}: store = '{url}': cannot be used (")
    assert "name a folder you may write to" in said


def test_what_a_bucket_forbids_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket's refusal has no errno."""

    def refuse(*arguments: object) -> int:
        raise PermissionError("s3://b/report: AccessDenied")

    monkeypatch.setattr(explain, "explain", refuse)
    assert cli.main(["explain", "abc", "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "empathy explain: s3://b/report: AccessDenied\n"


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "jobs.cli", "plan", DEMO, "--store", str(tmp_path), "--all"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.PIPE_CLOSED, "")


def test_profile_names_providers_it_knows() -> None:
    with pytest.raises(ValueError, match=r"provider = 'opnai'.*openai"):
        profiles.Profile().provider("opnai")


def test_profile_store_is_absolute_and_never_in_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert profiles.load(None).store == str(tmp_path / "build" / "store")


def test_explain_finds_by_prefix_and_names_the_sibling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path / "store"))
    other, stage = (lower(tiny(tmp_path / str(n), n=n)).report.inputs["dialogues"] for n in (24, 25))
    for of in (other, stage):
        writer = store.writer(of)
        writer.write_records(0, [], Dialogue)
        writer.commit({"made by": "test"})
    assert explain.explain(stage.key[:10], None, store.url) == 0
    said = capsys.readouterr().out
    assert stage.key in said
    assert f"it is dialogues/{other.key})" in said
    assert "spec.digest" in said
    with pytest.raises(ValueError, match="none in"):
        explain.find(store, "0" * 32)


@pytest.mark.parametrize(
    "name", ["zzz", "replies/../dialogues/", "../store/dialogues/0", "no_kind/00", "/00", "dialogues/..", "0" * 33, "."]
)
def test_explain_takes_a_key_and_never_leaves_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"artifact = .*: give a key .*the kinds are checkpoint, dialogues"):
        explain.find(Store.open(str(tmp_path)), name)


def test_explain_names_the_command_that_makes_it_and_that_makes_this_stage_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = Store.open(str(tmp_path / "store")), tiny_file(tmp_path)
    lowered = lower(experiment.load(file))
    stage = lowered.report.inputs["dialogues"]
    writer = store.writer(stage)
    writer.write_records(0, [], Dialogue)
    writer.commit(made={"experiment": "tiny"})
    assert explain.explain(stage.key, None, store.url) == 0
    assert "  (FILE: experiment 'tiny')" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("name = ")
    for arguments in ([], [str(file)]):  # the file of that name in this folder, or the one that is named
        assert cli.main(["explain", stage.key, *arguments, "--store", store.url]) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("  empathy run"))
        args = cli.parser().parse_args(shlex.split(line)[1:])
        assert args.file == (arguments[0] if arguments else "tiny.toml")
        assert args.store == store.url
        assert choose.targets(lowered, args.until) == [stage]
    (tmp_path / "copy.toml").write_text(file.read_text())
    assert "empathy run FILE" in explain.maker(explain.find(store, stage.key), store), "which of the two is not known"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["trace", "d0", "tiny.toml"], "empathy run tiny.toml --until dialogues"),
        (["export", "tiny", "--file", "tiny.toml", "--to", "x"], "empathy run tiny.toml --store "),
        (["plan", "tiny.toml", "--until", "replies/zzz"], "empathy plan tiny.toml --all"),
    ],
)
def test_commands_that_are_suggested_name_the_users_file(
    arguments: list[str],
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert f"`{command}" in capsys.readouterr().err


@pytest.mark.parametrize("until", ["replies/zzz", "replies/", "reply"])
def test_until_refuses_what_is_not_one_stage_or_a_kind(until: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--until repl.*(plan FILE --all|verdicts, and KIND/KEY)"):
        choose.targets(lower(experiment.load(tiny_file(tmp_path))), until)


def test_explain_refuses_an_ambiguous_prefix(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    lowered = lower(tiny(tmp_path / "x"))
    for stage in (lowered.report.inputs["dialogues"], lowered.report.inputs["human:replies"]):
        writer = store.writer(stage)
        writer.write_records(0, [], Reply)
        writer.commit()
    with pytest.raises(ValueError, match="several begin so"):
        explain.find(store, "")


def test_the_shipped_code_is_small_and_whole(tmp_path: Path) -> None:
    submit._pack(tmp_path, [tiny_file(tmp_path / "x")])
    assert (tmp_path / "empathy" / "stages.py").is_file()
    assert (tmp_path / "tiny.toml").is_file()
    assert (tmp_path / "empathy" / "commit.txt").read_text() == version.commit()
    assert not list(tmp_path.rglob("__pycache__"))


def test_submit_names_the_largest_files_when_the_code_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "MAX_SHIPPED_MIB", 0.01)
    with pytest.raises(ValueError, match=r"take out what does not belong \(\w+/"):
        submit._pack(tmp_path, [])


@pytest.mark.parametrize(
    ("address", "said"),
    [("http://127.0.0.1:9", "no Ray answers there"), ("nowhere", "Invalid address format: nowhere")],
)
def test_a_cluster_that_does_not_answer_is_one_sentence_with_the_remedy(
    address: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Port 9 discards: nobody listens there."""
    words = ["submit", str(tiny_file(tmp_path)), "--store", str(tmp_path / "store"), "--address", address]
    assert cli.main(words) == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message == (
        f"empathy submit: address = {address!r}: {said}; name the cluster's job server (its dashboard) with --address, "
        "e.g. http://HEAD:8265, and see that it is up"
    )


def test_entrypoint_carries_no_secret_and_quotes_paths(tmp_path: Path) -> None:
    profile = profiles.load(None, str(tmp_path / "a store"))
    command = submit.entrypoint("folder/exp.toml", None, profile)
    assert command == f"python -m jobs.run exp.toml --store '{tmp_path}/a store'"


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "infra" / "profiles").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_profiles_load_by_name(file: Path) -> None:
    assert profiles.load(file.stem).store


def test_the_laptop_profile_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert profiles.load("laptop") == profiles.load(None)


@pytest.mark.parametrize("command", ["plan", "trace", "explain"])
def test_a_store_that_is_a_file_is_one_message(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tiny_file(tmp_path), tmp_path / "file"
    store.write_text("")
    words = {"plan": ["plan", str(file)], "trace": ["trace", "d0", str(file)], "explain": ["explain", "ab"]}[command]
    assert cli.main([*words, "--store", str(store)]) == 2
    assert str(store) in capsys.readouterr().err


def test_a_damaged_manifest_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.files.write(f"dialogues/{'a' * 32}/artifact.json", b"not json")
    assert cli.main(["explain", "aa", "--store", store.url]) == 2
    assert "delete it and run again" in capsys.readouterr().err
