"""A cap in dollars that lets not one call through: the command that goes on names one that does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jobs import cli
from serving.scripted import Scripted
from tests.experiments import tiny_file

PROFILE = """
[ask]
workers = 0
[providers.scripted]
base_url = "{url}"
[prices."rule-teacher-1"]
usd_per_million_in  = 100
usd_per_million_out = 100
as_of               = "always"
"""


def test_the_command_that_goes_on_goes_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, profile = tiny_file(tmp_path), tmp_path / "profile.toml"
    file.write_text(file.read_text().replace('"embedded"\nmodel           =', '"scripted"\nmodel           ='))
    with Scripted() as server:
        profile.write_text(PROFILE.format(url=server.url))
        place = ["--on", str(profile), "--store", str(tmp_path / "store"), "--until", "replies"]
        assert cli.main(["run", str(file), *place, "--max-usd", "0.001"]) == 1
        said = capsys.readouterr().err
        assert server.counts()["total"] == 0
        assert "no run with this cap can make it" in said
        _, *command = shlex.split(said.splitlines()[-1])
        assert command[-2:] != ["--max-usd", "0.001"]
        cli.main(command)
        assert server.counts()["total"] > 0
