"""EmpatheticDialogues and ESConv as they are published; counts were taken from the files by other means (csv and
json alone)."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from empathy import dialogues
from empathy.records import Dialogue
from empathy.sources import parse
from empathy.sources.clean import Bad, clean
from empathy.specs import OfficialSplit, RandomSplit
from empathy.store import Artifact, Store
from empathy.twins import MIN_WORDS


def rows(name: str, **options: object) -> list[Dialogue | Bad]:
    source = parse({"type": name, "path": f"${{EMPATHY_DATA}}/{name}", **options})
    return [row if isinstance(row, Bad) else clean(row) for row in source.rows()]


def made(tmp_path: Path, name: str, split: object) -> Artifact:
    stage = dialogues.stage(parse({"type": name, "path": f"${{EMPATHY_DATA}}/{name}"}), split)  # type: ignore[arg-type]
    store = Store.open(str(tmp_path))
    dialogues.make(stage, store, store.writer(stage))
    return store.get(stage)


def test_empathetic_dialogues_official_split(tmp_path: Path) -> None:
    artifact = made(tmp_path, "empathetic_dialogues", OfficialSplit())
    # 2,765 valid and 2,545 test ids are published with it; 24,856 - 5,310 = 19,546 train, three without a listener
    assert artifact.counts == {
        "train": 19_543 - artifact.counts["twin_of_test"],
        "valid": 2765,
        "test": 2545,
        "no_listener_turn": 3,
        "twin_of_test": artifact.counts["twin_of_test"],
    }
    assert 0 < artifact.counts["twin_of_test"] < 20
    assert len({d.emotion for d in artifact.read(Dialogue)}) == 32


def test_empathetic_dialogues_every_listener_turn_is_once_a_reply() -> None:
    found = [d for d in rows("empathetic_dialogues", exchanges="all") if isinstance(d, Dialogue)]
    folder = Path(os.environ["EMPATHY_DATA"]) / "empathetic_dialogues"
    spoken: Counter[tuple[str, str]] = Counter()
    with tarfile.open(folder / "empatheticdialogues_unannotated.tar.xz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None:
                for row in csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline="")):
                    if row["Actor"] == "listener":
                        spoken[row["Dialog_ID"], row["Text"].strip()] += 1
    assert Counter((d.group, d.human_reply) for d in found) == spoken
    assert len(found) == 51_263


def test_empathetic_dialogues_has_twins_across_a_random_split(tmp_path: Path) -> None:
    artifact = made(tmp_path, "empathetic_dialogues", RandomSplit(test_fraction=0.125))
    assert artifact.counts["twin_of_test"] > 50
    sides: dict[str, set[str]] = {}
    for d in artifact.read(Dialogue):
        sides.setdefault(d.turns[0].content.casefold(), set()).add(d.split)
    both = [text for text, s in sides.items() if len(s) > 1]
    assert all(len(text.split()) < MIN_WORDS for text in both), both


def test_esconv_replies_are_runs_of_supporter_turns_after_a_seekers() -> None:
    found = rows("esconv")
    assert not [d for d in found if isinstance(d, Bad)]
    folder = Path(os.environ["EMPATHY_DATA"]) / "esconv"
    starts: Counter[str] = Counter()
    for side in ("train", "valid", "test"):
        for text in (folder / f"{side}.txt").read_text(encoding="utf-8").splitlines():
            said = [t["speaker"] for t in json.loads(text)["dialog"]]
            starts[side] += sum(a == "usr" and b == "sys" for a, b in itertools.pairwise(said))
    assert Counter(d.split for d in found if isinstance(d, Dialogue)) == starts
    assert starts == {"train": 10_191, "valid": 2156, "test": 2295}
    assert len({d.group for d in found if isinstance(d, Dialogue)}) == 1300


@pytest.mark.parametrize("most", [1, 3])
def test_esconv_at_most(most: int) -> None:
    found = [d for d in rows("esconv", max_per_conversation=most, min_turns=4) if isinstance(d, Dialogue)]
    assert max(Counter(d.group for d in found).values()) == most
    assert min(len(d.turns) for d in found) >= 4
