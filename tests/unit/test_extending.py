"""docs/extending.md, followed to the letter: its files written, its changes applied to a copy of the package, and its
experiment run up to the training sets by the embedded rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^`([^`\n]+)`:\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN = """
import json, sys
from pathlib import Path
from empathy import examples, experiment, replies
from empathy.columns import from_table
from empathy.files import open_files
from empathy.lower import lower
from empathy.records import Demonstration, Preference, Reply
from empathy.requests import Answer
from empathy.stages import walk
from empathy.store import Store
from cluster.steps import here
from serving.rules import teacher

assert Path(experiment.__file__).is_relative_to(Path.cwd()), experiment.__file__


def answered(asking):
    request = next(asking)
    while True:
        try:
            request = asking.send(Answer(teacher.reply(request.messages)))
        except StopIteration as end:
            return end.value


store = Store(open_files("store"))
lowered = lower(experiment.load("mine.toml"))
for stage in walk([lowered.report]):
    if stage.kind in ("dialogues", "examples") or (stage.kind == "replies" and here.takes(stage)):
        here.make(stage, store)
    elif stage.kind == "replies" and stage.spec.responder.type == "teacher":
        writer = store.writer(stage)
        for part in range(len(store.get(stage.inputs["dialogues"]).parts)):
            writer.write_records(part, [answered(a) for _, a in replies.askings(stage, store, part)], Reply)
        writer.commit()

told = {}
for cell in lowered.cells:
    made = store.get(cell.checkpoint.inputs["examples"])
    cls = Preference if "reference" in cell.checkpoint.inputs else Demonstration
    rows = [(r.dialogue_id, r.chosen if cls is Preference else r.reply) for r in made.read(cls)]
    learned = store.get(cell.lesson.learned)
    told[cell.name] = {
        "rows": rows,
        "dropped": made.meta["dropped"],
        "turns": [len(r.turns) for r in learned.read(Reply)],
    }
print(json.dumps(told))
"""


def blocks() -> Iterator[tuple[str, str, str]]:
    """(file, language, text) of every block that the page gives a file name."""
    yield from BLOCK.findall(PAGE)


def changed(text: str, diff: str) -> str:
    """`text` with each run of "-" lines replaced by the "+" lines after it. The old lines must be there once."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        before, after = ("".join(line[1:] for line in lines.splitlines(keepends=True)) for lines in (old, new))
        assert text.count(before) == 1, f"{before!r} is there {text.count(before)} times"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is after the page was followed, with some data."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "empathy", folder / "empathy", ignore=shutil.ignore_patterns("__pycache__"))
    for name, language, text in blocks():
        file = folder / name
        if language == "diff":
            file.write_text(changed(file.read_text(encoding="utf-8"), text), encoding="utf-8")
        else:
            assert not file.exists(), f"{name} is there already"
            file.write_text(text, encoding="utf-8")
    shouts = "my boss said OH GOD OH GOD we lost the prize I won and I cried. "
    things = ("my dog died", "I lost my job", "my sister won a prize")
    rows = [
        f"d{i}\t{shouts if i % 10 == 0 else ''}Last week {things[i % 3]}, and on day {i} I still think of it."
        f"\tOh, number {i}.\t{i % 3 + 1}"
        for i in range(200)
    ]
    (folder / "dialogues.tsv").write_text("\n".join([*rows, "d99\ttoo few cells"]) + "\n")
    return folder


def in_copy(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}", "MY_DATA": str(copy)}
    return subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)


def test_the_page_shows_complete_files() -> None:
    assert sum(f"\n```{language}\n" in PAGE for language in ("toml", "python", "diff")) == 3
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == len(list(blocks()))


def test_what_was_added_is_used(copy: Path) -> None:
    done = in_copy(copy, "-c", RUN)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    regimes = [(method, regime) for method in ("rescue", "improve_human") for regime in ("sft", "dpo", "sft+dpo")]
    cells = {(m, r): next(c for n, c in told.items() if f"regime={r} method={m} " in n) for m, r in regimes}
    assert len(cells) == len(told) == 6
    for (method, regime), cell in cells.items():
        if method == "improve_human":  # the strategy's chat of two turns: question, answer, question
            assert cell["turns"] == [3] * 200
            continue
        # Ratings go 1, 2, 3 from d0 on: the new method learns from Bad ones in SFT, from Okay ones in DPO.
        numbers = {int(ident[1:]) for ident, _ in cell["rows"]}
        assert len(numbers) > 40
        assert {number % 3 for number in numbers} == {0 if regime == "sft" else 1}
        # Every tenth speaker shouts, and the rules' answer repeats it: the new screen drops it, and says so.
        assert not any("GOD OH GOD OH" in text for _, text in cell["rows"])
        assert cell["dropped"]["shouting"] > 0


def test_a_misspelt_name_is_answered_with_the_new_one(copy: Path) -> None:
    for old, new, known in (
        ('strategy = "gentle"', 'strategy = "gentel"', "gentle"),
        ('type = "tsv"', 'type = "tvs"', "tsv"),
        ('"shouting"', '"shuoting"', "shouting"),
        ('"rescue"', '"recsue"', "rescue"),
    ):
        (copy / "misspelt.toml").write_text((copy / "mine.toml").read_text().replace(old, new))
        done = in_copy(copy, "-c", "from empathy import experiment; experiment.load('misspelt.toml')")
        assert done.returncode
        assert re.search(rf"ValueError: .*\b{known}\b", done.stderr.replace("\n", " ")), done.stderr
