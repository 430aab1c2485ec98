"""report.html and the files beside it, from estimates and content."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empathy.columns import to_table
from empathy.records import Estimate
from empathy.report import book as words
from empathy.report.book import Book
from empathy.report.plots import figures
from empathy.stages import Stage, walk

if TYPE_CHECKING:
    from empathy.report import Headline

TEXT_COLUMNS = (
    ("words", "words", 1, 1),
    ("words_judged", "words as judged", 1, 1),
    ("distinct_1_corpus", "Distinct-1 corpus", 1, 3),
    ("distinct_2_corpus", "Distinct-2 corpus", 1, 3),
    ("distinct_1_mean", "Distinct-1 mean", 1, 3),
    ("distinct_2_mean", "Distinct-2 mean", 1, 3),
    ("distinct_1_adjusted", "Distinct-1 adjusted", 1, 3),
    ("distinct_2_adjusted", "Distinct-2 adjusted", 1, 3),
    ("self_bleu", "self-BLEU", 1, 1),
    ("question_share", "asks, %", 100, 1),
    ("template_share", "stock phrase, %", 100, 1),
    ("empty_share", "empty, %", 100, 1),
    ("capped_share", "capped, %", 100, 1),
    ("invented_turns_share", "invents turns, %", 100, 1),
    ("not_stopped_share", "not stopped, %", 100, 1),
)
"""(measure, heading, factor, digits) of the table of text metrics."""


def as_csv(estimates: Iterable[Estimate]) -> str:
    """All fields, one estimate a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.name for f in dataclasses.fields(Estimate)])
    writer.writerows(dataclasses.astuple(e) for e in estimates)
    return out.getvalue()


def named(estimates: Iterable[Estimate], book: Book) -> list[Estimate]:
    """The same with the names that people use instead of slots."""
    return [
        dataclasses.replace(e, arm=book.name(e.arm), opponent=e.opponent and book.name(e.opponent)) for e in estimates
    ]


def draw_page(
    stage: Stage, estimates: list[Estimate], content: Mapping[str, Any], out_dir: Path, head: Headline, store_url: str
) -> Path:
    """Write the page, the estimates (parquet, csv) and each figure (svg, csv) under `out_dir`."""
    import pyarrow.parquet as pq
    from jinja2 import Environment, PackageLoader, StrictUndefined

    book = Book(estimates, stage.locator)
    charts = list(figures(book))
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    with_names = named(estimates, book)
    pq.write_table(to_table(with_names, Estimate), out_dir / "estimates.parquet")
    (out_dir / "estimates.csv").write_text(as_csv(with_names), encoding="utf-8")
    for chart in charts:
        (out_dir / "figures" / f"{chart.name}.svg").write_text(chart.svg, encoding="utf-8")
        (out_dir / "figures" / f"{chart.name}.csv").write_text(chart.csv, encoding="utf-8")
    environment = Environment(loader=PackageLoader("empathy.report", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": words.percent, "number": words.number, "data_url": data_url}
    text = environment.get_template("page.html").render(
        head=head,
        stage=stage,
        store_url=store_url,
        book=book,
        charts=charts,
        content=content,
        text_columns=TEXT_COLUMNS,
        labels={s.key: s.label for s in walk([stage])},
        kinds={s.key: s.kind for s in walk([stage])},
        estimates_csv=as_csv(with_names),
        **_tables(book, content),
    )
    page = out_dir / "report.html"
    page.write_text(text, encoding="utf-8")
    return page


def data_url(text: str) -> str:
    """A csv inside the page, so that it can be saved from there."""
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()


def _tables(book: Book, content: Mapping[str, Any]) -> dict[str, Any]:
    side, fewer = content["split"]["sizes"].get(content["split"]["side"], 0), dict[str, list[int]]()
    for row in content["judged"]:
        if row["dialogues"] < side:
            fewer[row["opponent"]] = sorted({*fewer.get(row["opponent"], []), row["dialogues"]})
    return {
        "checks": book.checks(),
        "contrasts": [_contrast(book, e) for e in book.of("contrast")],
        "missing": [e for e in book.of("missing_share") if e.value is not None and e.value > 0.02],
        "fewer": fewer,
        "judges": sorted({f"{e.judge} ({e.note})" for e in book.of("win_rate")}),
        "reasons": sorted({reason for s in content["training_sets"] for reason in s["dropped"]}),
        "talkers": [s for s in book.responders if book.get(s, "words")],
        "overlaps": list(book.of("rouge_l")),
    }


def _contrast(book: Book, e: Estimate) -> dict[str, Any]:
    against, family = re.fullmatch(r"against (\S+), family of (\d+)", e.note).groups()  # type: ignore[union-attr]
    p, adjusted = (book.get(e.arm, m, e.opponent, e.judge, e.note) for m in ("contrast_p", "contrast_p_holm"))
    return {"e": e, "p": p, "adjusted": adjusted, "against": book.name(against), "family": family}
