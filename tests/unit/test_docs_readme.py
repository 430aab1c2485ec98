"""The README's experiment plans, and every link between the pages leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs import cli
from tests.experiments import THINGS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = json.loads((ROOT / "docs" / "data.md").read_text().partition("```json\n")[2].partition("```")[0])


def anchor(heading: str) -> str:
    """As GitHub makes it: small letters, no punctuation, hyphens for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        place, _, part = link.partition("#")
        if not place.startswith("http"):
            found = page.parent / place if place else page
            assert found.exists(), link
            assert not part or part in map(anchor, re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)), link


def test_the_readmes_experiment_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        EXAMPLE
        | {"id": f"d{i}", "group": f"g{i}", "ratings": {"human": i % 3 + 1}}
        | {"turns": [{"role": "user", "content": f"{THINGS[i % 6]}, and that was {i} weeks ago."}]}
        for i in range(60)
    ]
    Path("dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.toml").write_text((ROOT / "README.md").read_text().partition("```toml\n")[2].partition("```")[0])
    assert cli.main(["plan", "mine.toml"]) == 0
    said = capsys.readouterr().out
    assert "4 trained students (2 arms x 2 regimes x 1 student x 1 seed)" in said
    assert "openai gpt-4o-mini" in said
