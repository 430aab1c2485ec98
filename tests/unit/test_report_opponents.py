"""Whom a report compares with whom: naive twins and bases are told from other opponents."""

from __future__ import annotations

from empathy.records import Estimate
from empathy.report import headline
from empathy.report.book import Book, opponent_kind
from empathy.report.plots import _wins

NAMES = {
    "base0": "llama (base)",
    "a000": "student=llama regime=sft method=improve_human teacher=gpt-4o strategy=naive seed=0",
    "a001": "student=llama regime=sft method=improve_human teacher=gpt-4o strategy=lacking seed=0",
    "0": "method=improve_human teacher=gpt-4o strategy=naive",
    "1": "method=improve_human teacher=gpt-4o strategy=lacking",
}


def win(arm: str, opponent: str, value: float) -> Estimate:
    return Estimate(
        arm, opponent, "win_rate", value, value - 0.05, value + 0.05, 500, 200, "judge-1", "robust mode", "k"
    )


ROWS = [
    win("a000", "base0", 0.8),
    win("a000", "teacher:0", 0.4),
    win("a001", "base0", 0.9),
    win("a001", "teacher:1", 0.45),
    win("a001", "a000", 0.6),
    win("base0", "human", 0.2),
    win("base0", "teacher:0", 0.1),
    win("base0", "teacher:1", 0.15),
]


def test_kinds_of_opponents() -> None:
    assert [opponent_kind(s) for s in ("base0", "human", "teacher:12", "a003")] == ["base", "human", "teacher", "naive"]


def test_the_terminal_has_a_column_a_kind_and_a_row_an_arm() -> None:
    table = headline(ROWS, NAMES).splitlines()
    assert table[2].split("  ")[0] == "arm"
    assert [c.strip() for c in table[2].split("  ") if c.strip()] == [
        "arm",
        "against base",
        "against teacher",
        "against naive",
    ]
    rows = [line for line in table[4:] if line.strip()]
    assert len(rows) == 2  # the base's own comparisons are for the page
    assert "60.0 [55.0, 65.0]" in rows[1]
    assert "–" in rows[0]


def test_a_number_without_an_interval_is_explained() -> None:
    same = Estimate("a001", "base0", "win_rate", 0.5, 0.5, 0.5, 24, 5, "judge-1", "robust mode", "k")
    *_, last = headline([same], NAMES).splitlines()
    assert last.startswith("without an interval: all clusters say the same")
    assert "without an interval" not in headline(ROWS, NAMES)


def test_a_bases_bar_stands_beside_the_arms_of_the_same_teacher() -> None:
    bars = {(b.panel, b.group, b.series): b.value for b in _wins(Book(ROWS, NAMES))}
    against = "llama against its teacher's reply"
    assert bars == {
        ("llama against its base", "improve_human naive", "sft"): 80.0,
        ("llama against its base", "improve_human lacking", "sft"): 90.0,
        ("llama against the human reply", "(base)", "base"): 20.0,
        (against, "improve_human naive", "sft"): 40.0,
        (against, "improve_human naive", "base"): 10.0,
        (against, "improve_human lacking", "sft"): 45.0,
        (against, "improve_human lacking", "base"): 15.0,
        ("llama against the naive arm", "improve_human lacking", "sft"): 60.0,
    }
