"""The headline table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from empathy.records import Estimate
from empathy.report.book import UNKNOWN, Book, number, percent


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def headline(estimates: Iterable[Estimate], names: Mapping[str, str]) -> str:
    """Win rates of every arm, then what needs no judge; `names` is the locator of the report stage."""
    book = Book(estimates, names)
    wins = [["arm", "against", "judge", "n", "clusters", "win rate, % [95 %]", "ties", "orders agree", "words more"]]
    for m in book.matches:
        w = book.of_match(m, "win_rate")
        assert w
        shares = [_short(book.of_match(m, x)) for x in ("tie_share", "order_consistency")]
        more = book.of_match(m, "words_difference")
        words = f"{more.value:+.1f}" if more and more.value is not None else UNKNOWN
        name = [book.name(m.arm), book.name(m.opponent), m.judge or UNKNOWN]
        wins.append([*name, str(w.n), str(w.clusters), percent(w).replace(" %", ""), *shares, words])
    heads = ["", "taught by", "NLL, nats/token [95 %]", "pairs right", "over base", "words"]
    own = [heads, *_unjudged(book)]
    return "\n\n".join(columns(t) for t in (wins, own) if len(t) > 1)


def _short(e: Estimate | None) -> str:
    return UNKNOWN if e is None or e.value is None else f"{100 * e.value:.0f} %"


def _unjudged(book: Book) -> Iterable[list[str]]:
    for e in book.of("nll_per_token"):
        note = e.note.replace(":sft:", ":dpo:")
        pairs = [book.get(e.arm, f"preference_accuracy_{k}", note=note) for k in ("summed", "over_base")]
        words = number(book.get(e.arm, "words"), 1).split(" [")[0]
        shares = [percent(p).split(" [")[0] for p in pairs]
        yield [book.name(e.arm), book.lesson_named(e.note), number(e, 3), *shares, words]
