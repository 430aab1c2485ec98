"""The headline table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from empathy.records import Estimate
from empathy.report.book import UNKNOWN, Book, number, opponent_kind, percent
from empathy.words import counted


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def headline(
    estimates: Iterable[Estimate],
    names: Mapping[str, str],
    stand_ins: Sequence[str] = (),
    judged: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Win rates of every arm, then what needs no judge, then a warning if there are `stand_ins`; `names` is the locator
    of the report stage, `judged` what `empathy.report.content.judged_sizes` says: how many dialogues verdicts are
    about."""
    book = Book(estimates, names)
    dialogues = {(j["slot"], j["opponent"], j["judge"]): int(j["dialogues"]) for j in judged}
    tables = [_wins(book, str(judge), dialogues) for judge in dict.fromkeys(m.judge for m in book.matches)]
    return "\n\n".join([*tables, *_unjudged(book), *_warning(stand_ins)])


def _wins(book: Book, judge: str, dialogues: Mapping[tuple[str, str, str], int]) -> str:
    # A base is compared with every teacher of its students: that is for the page.
    rows = [e for e in book.of("win_rate") if e.judge == judge and not e.arm.startswith("base")]
    kinds = list(dict.fromkeys(opponent_kind(str(e.opponent)) for e in rows))
    cells = {(e.arm, opponent_kind(str(e.opponent))): percent(e).replace(" %", "") for e in rows}
    table = [["arm", *(f"against {k}" for k in kinds)]]
    table += [[book.name(a), *(cells.get((a, k), UNKNOWN) for k in kinds)] for a in dict.fromkeys(e.arm for e in rows)]
    sizes = sorted({(e.n, dialogues.get((e.arm, str(e.opponent), judge), 0), e.clusters) for e in rows})
    shown = [_size(*size) for size in sizes[:3]]
    n = " or ".join(shown) + (" ..." if len(sizes) > 3 else "")
    bare = any(text[0].isdigit() and "[" not in text for text in cells.values())
    return f"Win rate, % [95 % interval], judge {judge}; {n}\n\n{columns(table)}" + (f"\n\n{BARE}" if bare else "")


BARE = "without an interval: all clusters say the same, or there is one alone; nothing follows about others"


def _size(verdicts: int, dialogues: int, clusters: int) -> str:
    """ "24 verdicts on 12 dialogues in 5 clusters"; the dialogues where their number (not 0) is known."""
    about = f" on {counted(dialogues, 'dialogue')}" if dialogues else ""
    return f"{counted(verdicts, 'verdict')}{about} in {counted(clusters, 'cluster')}"


def _warning(stand_ins: Sequence[str]) -> list[str]:
    one, many = "is a fixed set of rules, not a language model", "are fixed sets of rules, not language models"
    are = one if len(stand_ins) == 1 else many
    said = f"Stand-ins: {' and '.join(stand_ins)} {are}: no conclusion about empathy may be drawn."
    return [said] if stand_ins else []


def _unjudged(book: Book) -> list[str]:
    table = [["student", "taught by", "NLL, nats/token", "pairs right, %", "over base, %", "words a reply"]]
    for e in book.likelihoods:
        pairs = e.note.replace(":sft:", ":dpo:")
        right = [
            percent(book.get(e.arm, f"preference_accuracy_{kind}", note=pairs)).replace(" %", "")
            for kind in ("per_token", "over_base")
        ]
        words = number(book.get(e.arm, "words"), 1).split(" [")[0]
        table.append([book.name(e.arm), book.lesson_named(e.note), number(e, 3), *right, words])
    legend = (
        "pairs right: the chosen reply has the higher log-probability a token; over base: its log-probability rose\n"
        "more over the base's than the rejected one's did"
    )
    return [f"Without a judge, on held-out dialogues\n\n{columns(table)}\n\n{legend}"] if len(table) > 1 else []
