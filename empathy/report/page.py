"""report.html and the files beside it, from estimates and content."""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import io
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from empathy.columns import to_table
from empathy.records import Estimate
from empathy.report import book as words
from empathy.report import drops
from empathy.report.book import Book, Check, opponent_kind
from empathy.report.cells import Cells
from empathy.report.plots import figures
from empathy.report.settings import settings
from empathy.stages import Stage, walk
from empathy.stats.clustered import Interval

if TYPE_CHECKING:
    from markupsafe import Markup

    from empathy.report import Headline

MANY = 40
"""A table with more rows than this is folded up; of more arms than this a dialogue shows the replies on demand."""
PACKED_FROM_BYTES = 500_000
FEW_CLUSTERS = 20
TEXT_COLUMNS = (
    ("words", "words a reply", 1, 1),
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
    names = [f.name for f in dataclasses.fields(Estimate)]
    writer.writerow(names)
    writer.writerows(map(attrgetter(*names), estimates))
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
    environment.filters |= {"percent": words.percent, "number": words.number, "download": download}
    text = environment.get_template("page.html").render(
        head=head,
        stage=stage,
        store_url=store_url,
        place=lambda kind, key: place_of(f"{kind}/{key}", store_url, out_dir),
        many=MANY,
        book=book,
        charts=charts,
        content=content,
        text_columns=TEXT_COLUMNS,
        labels={s.key: s.label for s in walk([stage])},
        kinds={s.key: s.kind for s in walk([stage])},
        estimates_csv=as_csv(with_names),
        settings=settings(Cells(stage)),
        **_tables(book, content, drops.screens(stage)),
    )
    page, whole = out_dir / "report.html", out_dir / ".report.html"
    whole.write_text(text, encoding="utf-8")
    return whole.replace(page)  # a full disk leaves the page that was there


def download(text: str, name: str) -> Markup:
    """A link that saves a csv which is inside the page; one that is large is packed (.csv.gz, as pandas and R read)."""
    from markupsafe import Markup

    data, kind = text.encode(), "text/csv"
    if len(data) > PACKED_FROM_BYTES:
        data, kind, name = gzip.compress(data, mtime=0), "application/gzip", f"{name}.gz"
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return Markup('<a download="{}" href="{}">{}</a>').format(name, url, name)


def place_of(artifact: str, store_url: str, out_dir: Path) -> str:
    """Where an artifact's manifest lies as seen from a page in `out_dir`: a relative link into a folder, or the address
    in a bucket."""
    if "://" in store_url:
        return f"{store_url.rstrip('/')}/{artifact}/artifact.json"
    manifest = Path(store_url).expanduser().absolute() / artifact / "artifact.json"
    return quote(Path(os.path.relpath(manifest, out_dir.absolute())).as_posix())


def _tables(book: Book, content: Mapping[str, Any], screened: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    side, fewer = content["split"]["sizes"].get(content["split"]["side"], 0), dict[str, list[int]]()
    for row in content["judged"]:
        if row["dialogues"] < side:
            fewer[row["opponent"]] = sorted({*fewer.get(row["opponent"], []), row["dialogues"]})
    clusters = content["split"]["groups"]
    return {
        "checks": (checks := book.checks()),
        "claims": _claims(checks),
        "families": _families(book),
        "several_judges": len({m.judge for m in book.matches}) > 1,
        "overviews": _overviews(book),
        "least_p": 2 / 2**clusters if 1 < clusters < FEW_CLUSTERS else None,
        "missing": [e for e in book.of("missing_share") if e.value is not None and e.value > 0.02],
        "fewer": fewer,
        "ratings": [r | {"mean": _mean(r)} for r in content.get("ratings", ())],
        "judges": sorted({f"{e.judge} ({e.note})" for e in book.of("win_rate")}),
        "reasons": sorted({r for s in content["training_sets"] for r in (*s["dropped"], *screened.get(s["key"], ()))}),
        "screened": screened,
        "talkers": [s for s in book.responders if book.get(s, "words")],
        "rubric": list(book.of("rubric_overall")),
        "overlaps": list(book.of("rouge_l")),
        "signatures": sorted({e.note for m in ("bleu_4", "rouge_l") for e in book.of(m)}),
        **_counted(content["stages"], {s["key"] for s in content["training_sets"]}),
    }


def _mean(r: Mapping[str, Any]) -> Interval:
    return Interval(r["mean"], r["low"], r["high"], None, r["replies"] - r["unrated"], r["clusters"])


def _claims(checks: Sequence[Check]) -> str:
    """ "16 claims: 4 hold, 8 are open, 4 do not hold"."""
    held, still, failed = (sum(c.holds is x for c in checks) for x in (True, None, False))
    return f"{len(checks)} claims: {held} hold, {still} are open, {failed} do not hold"


def _families(book: Book) -> list[tuple[str, list[dict[str, Any]]]]:
    """Contrasts by family, under what the arms of a family share: whom both are compared with, and the judge."""
    found: dict[str, list[dict[str, Any]]] = {}
    for e in book.of("contrast"):
        match = re.fullmatch(r"against (\S+), family of (\d+)", e.note)
        assert match, f"a contrast against nobody: {e.note!r}"
        p, adjusted = (book.get(e.arm, m, e.opponent, e.judge, e.note) for m in ("contrast_p", "contrast_p_holm"))
        row = {"e": e, "p": p, "adjusted": adjusted}
        found.setdefault(f"both against {book.name(match[1])}, judge {e.judge}", []).append(row)
    return list(found.items())


def _overviews(book: Book) -> list[dict[str, Any]]:
    """A table a judge with a row an arm and its win rates in columns: the answer, before the tables it is from."""
    found = []
    for judge in dict.fromkeys(m.judge for m in book.matches):
        rows = [e for e in book.of("win_rate") if e.judge == judge and not e.arm.startswith("base")]
        kinds = list(dict.fromkeys(opponent_kind(str(e.opponent)) for e in rows))
        cells = {(e.arm, opponent_kind(str(e.opponent))): e for e in rows}
        arms = [(arm, [cells.get((arm, k)) for k in kinds]) for arm in dict.fromkeys(e.arm for e in rows)]
        found.append({"judge": judge, "kinds": kinds, "arms": arms})
    return found


ASKED = ("calls", "retries", "from_ledger", "tokens_in", "tokens_out")
"""Counts of a stage that asks, in the order of the page."""
NO_DROPS = {*ASKED, "rows", "limited", "unknown", "damaged", "shared", "shared_tokens_in", "shared_tokens_out"}
"""Counts of a stage that say what was done, and not what was lost."""


def _kept(s: Mapping[str, Any], lost: int) -> int | None:
    """Rows of a stage that are of use. A reply or a verdict that came to nothing is a row all the same; a checkpoint
    has none."""
    return s["rows"] - lost if s["kind"] in ("replies", "verdicts") else s["rows"] or None


def _counted(stages: Iterable[Mapping[str, Any]], told: Container[str]) -> dict[str, Any]:
    """What stages lost (other than dialogues and the sets in `told`, which have tables of their own), what each asked
    for, and the proofs, by name: how many stages gave them, and their values where these are few."""
    lost, asked, proofs = [], [], dict[str, list[str]]()
    for s in stages:
        drops = {r: n for r, n in s["drops"].items() if n and r not in NO_DROPS}
        if drops and s["kind"] != "dialogues" and s["key"] not in told:
            lost.append({**s, "drops": drops, "kept": _kept(s, sum(drops.values()))})
        if any(s["drops"].get(name) for name in ASKED):
            asked.append(s)
        for name, value in s["proofs"].items():
            proofs.setdefault(name, []).append({"True": "yes", "False": "NO"}.get(str(value), str(value)))
    few = {name: ", ".join(sorted(set(values))) for name, values in proofs.items() if len(set(values)) <= 3}
    summed = [(name, len(values), few.get(name, f"{len(set(values))} values")) for name, values in proofs.items()]
    return {"losses": lost, "asked": asked, "asked_columns": ASKED, "proof_names": summed}
