"""The report: estimates as an artifact, and one page that works offline.

    build(stage, store)                   -> every estimate, and what else the page says
    make(stage, store, writer)            makes the artifact: part 0 the estimates, estimates.csv, content.json
    render(stage, store, folder, head)    draws folder/report.html from the artifact alone, with csv and svg beside it
    headline(estimates, names, ...)       the table for a terminal
    judged_sizes(stage, store)            how many dialogues verdicts are about
    stand_ins(stage)                      rule-based models that stand where an LLM should be, in words

Estimates name arms by slot ("a000"), as the stage's inputs do: a display name may change without making the artifact
another one. The page and the files beside it carry names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from empathy.files import naming
from empathy.records import Estimate
from empathy.specs import ReportSpec
from empathy.stages import Stage
from empathy.store import Store, Writer


@dataclass(frozen=True)
class Headline:
    """What the experiment file says about itself, and how commands name it: `command` makes the report again, `file` is
    the experiment's, `where` the options that say in which store ("--on P --store URL"). `left_out`: of arms that the
    file has and the report tells nothing of, each reason with their names."""

    name: str
    question: str
    expect: str = ""
    differs: str = ""
    command: str = ""
    file: str = ""
    where: str = ""
    left_out: Sequence[tuple[str, Sequence[str]]] = ()


def build(stage: Stage, store: Store) -> tuple[list[Estimate], dict[str, Any]]:
    """Estimates and content (see `empathy.report.content`) of a report stage whose inputs are all made."""
    from empathy.report import content, drops, judged, ratings, scored, unjudged
    from empathy.report.cells import Cells

    spec, cells = cast(ReportSpec, stage.spec), Cells(stage)
    tables = judged.load(cells, store)
    split, test = content.split_of(cells, store)
    heldout = unjudged.Heldout(cells, store)
    estimates = [
        *judged.estimates(cells, tables),
        *judged.compared(cells, tables, spec),
        *scored.estimates(cells, store),
        *unjudged.likelihoods(cells, heldout),
        *unjudged.preferences(cells, heldout),
        *unjudged.texts(cells, test, store),
    ]
    return estimates, {
        "split": split,
        "stand_ins": content.stand_ins(stage),
        "stages": list(content.stages(stage, store)),
        "training_sets": drops.training_sets(cells, store),
        "sources": drops.sources(stage, store),
        "ratings": ratings.ratings(cells, store),
        "served": content.served(tables, cells, store),
        "judged": content.judged_sizes(tables),
        "samples": content.side_by_side(cells, tables, test, store, spec),
    }


def make(stage: Stage, store: Store, writer: Writer) -> None:
    """Make and commit the report's artifact."""
    from empathy.report.page import as_csv

    estimates, content = build(stage, store)
    writer.write_records(0, estimates, Estimate)
    writer.add_file("estimates.csv", as_csv(estimates).encode())
    writer.add_file("content.json", json.dumps(content, sort_keys=True, allow_nan=False).encode())
    writer.commit()


def render(stage: Stage, store: Store, out_dir: Path, head: Headline) -> Path:
    """Write report.html, estimates.{csv,parquet} and figures/*.{svg,csv} under `out_dir`; returns the page's path."""
    from empathy.report.page import draw_page

    artifact = store.get(stage)
    estimates, content = list(artifact.read(Estimate)), json.loads(artifact.read_file("content.json"))
    if "ratings" not in content:  # a report made before it told them
        from empathy.report import ratings
        from empathy.report.cells import Cells

        content["ratings"] = ratings.ratings(Cells(stage), store)
    with naming(out_dir):
        return draw_page(stage, estimates, content, out_dir, head, store.url)


def headline(
    estimates: Iterable[Estimate],
    names: Mapping[str, str],
    stand_ins: Sequence[str] = (),
    judged: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Win rates of every arm, then what needs no judge, then a warning if there are `stand_ins`; `names` is the locator
    of the report stage, `judged` what `judged_sizes` found."""
    from empathy.report.console import headline as text

    return text(estimates, names, stand_ins, judged)


def judged_sizes(stage: Stage, store: Store) -> list[dict[str, Any]]:
    """How many dialogues the verdicts on each arm ("slot") are about, by opponent and judge; of a finished report."""
    return list(json.loads(store.get(stage).read_file("content.json"))["judged"])


def stand_ins(stage: Stage) -> list[str]:
    """Rule-based models that stand where an LLM should be in a report stage, in words."""
    from empathy.report.content import stand_ins as found

    return found(stage)
