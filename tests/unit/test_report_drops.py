"""The report says what each screen dropped from each arm's training sets, and what the source's rows lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from empathy.records import Demonstration, Dialogue, Preference, Turn
from empathy.report import Headline
from empathy.report.cells import Cells
from empathy.report.drops import screens, sources, training_sets
from empathy.report.page import draw_page
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    HubBase,
    Human,
    ImproveHuman,
    Lora,
    Optimiser,
    RandomSplit,
    ReportSpec,
    Sft,
)
from empathy.stages import Stage
from empathy.store import Store

NAMES = {"a000": "student=tiny regime=sft seed=0", "a001": "student=tiny regime=sft+dpo seed=0"}
SCREENS = ("refusal", "cut_off", "copies_input", "near_duplicate")
DIALOGUE = Dialogue("d", "g", (Turn("user", "I lost it."),))


def made(store: Store, stage: Stage, rows: list[object], cls: type, meta: dict[str, object]) -> Stage:
    writer = store.writer(stage)
    writer.write_records(0, rows, cls)
    writer.commit(meta)
    return stage


@pytest.fixture
def report(tmp_path: Path) -> tuple[Stage, Store]:
    """An SFT arm, and one of DPO after that SFT."""
    store = Store.open(str(tmp_path / "store"))
    lost = {"sides": {"train": 1}, "dropped": {"empty_turn": 2}, "rows_read": 1003}
    spec = DialoguesSpec(source="sample", digest="0" * 64, split=RandomSplit())
    dialogues = made(store, Stage(spec, label="mine"), [DIALOGUE], Dialogue, lost)
    shown = Demonstration.of(DIALOGUE, DIALOGUE.turns, "oh", "human")
    pair = Preference.of(DIALOGUE, DIALOGUE.turns, ("oh", "teacher"), ("ah", "human"))
    sets = [
        made(
            store,
            Stage(ExamplesSpec(method=Direct(), objective=o, screens=screens), {"dialogues": dialogues}),  # type: ignore[arg-type]
            rows,
            cls,
            meta,
        )
        for o, screens, rows, cls, meta in (
            ("sft", SCREENS, [shown], Demonstration, {"candidates": 1640, "dropped": {"cut_off": 10, "refusal": 6}}),
            ("dpo", (), [pair], Preference, {"candidates": 5, "dropped": {}}),
        )
    ]
    optimiser, base = Optimiser(learning_rate=1e-4), Stage(CheckpointSpec(base=HubBase(model="tiny")))
    sft = Stage(CheckpointSpec(objective=Sft(optimiser=optimiser, tuning=Lora())), {"base": base, "examples": sets[0]})
    dpo = Stage(
        CheckpointSpec(objective=Dpo(optimiser=optimiser, tuning=Lora())),
        {"base": base, "examples": sets[1], "policy": sft},
    )
    inputs = {"dialogues": dialogues, "a000:checkpoint": sft, "a001:checkpoint": dpo, "base0:checkpoint": base}
    return Stage(ReportSpec(), inputs, locator=NAMES), store


def test_sets_of_every_step_of_every_arm(report: tuple[Stage, Store]) -> None:
    stage, store = report
    found = training_sets(Cells(stage), store)
    assert [(s["slot"], s["objective"], s["selected"], s["examples"], s["dropped"]) for s in found] == [
        ("a000", "sft", 1640, 1, {"cut_off": 10, "refusal": 6}),
        ("a001", "sft", 1640, 1, {"cut_off": 10, "refusal": 6}),
        ("a001", "dpo", 5, 1, {}),
    ]
    store.discard("examples", found[2]["key"])  # a finished student does not need it any more
    assert len(training_sets(Cells(stage), store)) == 2


def drops_section(report: tuple[Stage, Store], tmp_path: Path, stages: Sequence[dict[str, object]] = ()) -> str:
    """The page's section on drops, and on what stages asked for."""
    stage, store = report
    nothing = {"split": {"sizes": {}, "side": "test", "source": "sample", "how": {"type": "random"}, "groups": 0}}
    nothing["split"]["cap_words"] = 97
    content = nothing | {"stand_ins": [], "stages": list(stages), "served": [], "judged": [], "samples": []}
    content |= {"training_sets": training_sets(Cells(stage), store), "sources": sources(stage, store)}
    page = draw_page(stage, [], content, tmp_path, Headline("trial", "?"), store.url).read_text()
    return page[page.index('<h2 id="drops">') : page.index('<h2 id="settings">')]


def cells_of(section: str) -> list[list[str]]:
    """The cells of every row, as text."""
    return [
        [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", section, re.DOTALL)
    ]


def test_the_page_shows_them(report: tuple[Stage, Store], tmp_path: Path) -> None:
    rows = cells_of(drops_section(report, tmp_path))
    assert [row[1:-1] for row in rows[:4]] == [
        ["set", "selected", "copies input", "cut off", "near duplicate", "refusal", "dropped, %", "examples"],
        ["sft", "1,640", "0", "10", "0", "6", "1.0", "1"],  # 16 of 1,640; two screens ran and caught nothing
        ["sft", "1,640", "0", "10", "0", "6", "1.0", "1"],
        ["dpo", "5", "", "", "", "", "0.0", "1"],  # no screen ran
    ]
    assert rows[5][:-1] == ["mine", "1,003", "train 1", "empty turn 2"]


def test_what_a_stage_kept_is_without_the_rows_that_came_to_nothing(
    report: tuple[Stage, Store], tmp_path: Path
) -> None:
    """A reply or verdict that came to nothing is a row of its stage; an example that was too long is none."""
    told = {"at": "", "proofs": {}}
    stages = [
        {"kind": "replies", "key": "1" * 32, "rows": 60, "drops": {"dropped: empty": 11, "calls": 120}, **told},
        {"kind": "verdicts", "key": "2" * 32, "rows": 24, "drops": {"dropped: unreadable": 1}, **told},
        {"kind": "logprobs", "key": "3" * 32, "rows": 30, "drops": {"too_long": 2}, **told},
        {"kind": "checkpoint", "key": "4" * 32, "rows": 0, "drops": {"too_long": 2}, **told},
    ]
    rows = cells_of(drops_section(report, tmp_path, stages))
    lost = rows.index(["stage", "rows lost", "kept", "from"])
    assert [row[:-1] for row in rows[lost + 1 : lost + 5]] == [
        ["replies", "empty 11", "49"],
        ["verdicts", "unreadable 1", "23"],
        ["logprobs", "too long 2", "30"],
        ["checkpoint", "too long 2", "–"],
    ]


def test_what_people_wrote_is_screened_by_nothing() -> None:
    specs = [ExamplesSpec(method=m, objective="sft", screens=SCREENS) for m in (Human(), ImproveHuman())]
    stages = [Stage(spec, {}) for spec in specs]
    found = screens(Stage(ReportSpec(), {f"heldout:sft:{k}": s for k, s in enumerate(stages)}))
    assert found == {stages[0].key: (), stages[1].key: SCREENS}


def test_what_was_asked_is_said_to_be_of_the_run_that_finished(report: tuple[Stage, Store], tmp_path: Path) -> None:
    """27 calls after a kill that had paid for 33: the page's tokens are fewer than the ledger's, and it says why."""
    counts = {"calls": 27, "from_ledger": 33, "tokens_in": 34_693, "tokens_out": 4_000}
    stage = {"kind": "replies", "key": "1" * 32, "rows": 60, "drops": counts, "at": "", "proofs": {}}
    section = drops_section(report, tmp_path, [stage])
    assert "What 1 stage asked for, in the runs that finished them" in section
    assert "their tokens are in no column" in section
    assert cells_of(section)[-1][:-1] == ["replies", "27", "0", "33", "34,693", "4,000"]
