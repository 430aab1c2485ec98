"""Bar charts as SVG, and the numbers of each as csv. matplotlib is loaded when the first is drawn."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

COLOURS = {"base": "#999999", "sft": "#0072B2", "dpo": "#E69F00", "sft+dpo": "#009E73"}
"""Okabe and Ito's palette: told apart with every kind of colour vision; hatches tell them apart in print."""
HATCHES = {"base": "", "sft": "//", "dpo": "..", "sft+dpo": "xx"}
MOST_BARS, MOST_GROUPS = 30, 12
"""In a row; more could not be read at the width of a page."""


@dataclass(frozen=True)
class Bar:
    """One bar: `series` gives its colour, bars of one `group` stand together, groups of one `panel` share axes."""

    panel: str
    group: str
    series: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Figure:
    """A chart, ready for a page: inline SVG, its csv, and what it shows."""

    name: str
    title: str
    caption: str
    svg: str
    csv: str


def as_csv(bars: Iterable[Bar]) -> str:
    """panel, group, series, value, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["panel", "group", "series", "value", "low", "high"])
    writer.writerows(astuple(b) for b in bars)
    return out.getvalue()


def draw(
    name: str,
    title: str,
    caption: str,
    bars: Sequence[Bar],
    label: str,
    top: float | None = None,
    line: float | None = None,
) -> Figure:
    """Grouped bars with error bars, panels side by side where they fit; y from 0 to `top`, a dashed line at `line`."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "hatch.linewidth": 0.5,
    }
    panels = list(_rows(bars))
    with plt.rc_context(style):
        widest = max(len(shown) for _, shown in panels)
        widest_groups = max(len({b.group for b in shown}) for _, shown in panels)
        width = max(3.9, 0.42 * widest + 1.2, 1.15 * widest_groups + 0.9)  # inches: bars, and the names under them
        columns = max(1, min(len(panels), int(13 // width)))
        rows = -(-len(panels) // columns)
        size = (width * columns, 2.7 * rows + 0.5)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title_of_panel, shown) in zip(axes.flat, panels, strict=False):
            _panel(axis, title_of_panel, shown, label, top, line)
        _legend(figure, bars)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return Figure(name, title, caption, _compact(out.getvalue()), as_csv(bars))


def _compact(svg: str) -> str:
    """The drawing without its prologue, at a hundredth of a point, without line breaks, names of parts and clipping
    (nothing is drawn outside its axes): a wide grid has thousands of bars."""
    svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg[svg.index("<svg") :])
    svg = re.sub(r' id="(?:patch|line2d|xtick|ytick|text|axes|LineCollection)_\d+"| clip-path="[^"]*"', "", svg)
    return re.sub(r"\s+", " ", svg)


def _rows(bars: Iterable[Bar]) -> Iterator[tuple[str, list[Bar]]]:
    """Panels with their titles; one of more than `MOST_BARS` bars or `MOST_GROUPS` groups is broken between groups into
    several."""
    by_panel: dict[str, list[Bar]] = {}
    for bar in bars:
        by_panel.setdefault(bar.panel, []).append(bar)
    for panel, members in by_panel.items():
        sizes = Counter(b.group for b in members)
        at_once = min(MOST_GROUPS, max(1, MOST_BARS // max(sizes.values())))
        pieces = -(-len(sizes) // at_once)
        row_of = {group: i * pieces // len(sizes) for i, group in enumerate(sizes)}
        for row in range(pieces):
            title = panel if pieces == 1 else f"{panel} ({row + 1} of {pieces})"
            yield title, [b for b in members if row_of[b.group] == row]


def _panel(axis: Any, panel: str, bars: Sequence[Bar], label: str, top: float | None, line: float | None) -> None:
    by_group: dict[str, list[Bar]] = {}
    for bar in bars:
        by_group.setdefault(bar.group, []).append(bar)
    groups, order = list(by_group), list(COLOURS)
    width = 0.8 / max(len(members) for members in by_group.values())
    at: dict[int, float] = {}
    for i, members in enumerate(by_group.values()):
        for k, bar in enumerate(sorted(members, key=lambda b: order.index(b.series))):
            at[id(bar)] = i + (k - (len(members) - 1) / 2) * width
    for series in order:
        shown = [b for b in bars if b.series == series]
        heights, colour, hatch = [b.value for b in shown], COLOURS[series], HATCHES[series]
        places = [at[id(b)] for b in shown]
        axis.bar(places, heights, width * 0.92, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    _reaches(axis, [(at[id(b)], b) for b in bars])
    if line is not None:
        axis.axhline(line, color="#222222", linestyle="--", linewidth=0.9)
    axis.set_ylim(0, top)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_xticks(range(len(groups)), [textwrap.fill(g, 15) for g in groups], fontsize=8)
    axis.set_xlabel("taught by", fontsize=8)
    axis.set_ylabel(label)
    axis.set_title(panel, loc="left", fontsize=9, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _reaches(axis: Any, bars: Sequence[tuple[float, Bar]]) -> None:
    """Error bars, of the bars that have an interval."""
    known = [(x, b.value, b.low, b.high) for x, b in bars if b.low is not None and b.high is not None]
    if known:
        x_N, value_N, low_N, high_N = np.array(known, dtype=np.float64).T
        reach_2N = np.maximum(0.0, [value_N - low_N, high_N - value_N])
        axis.errorbar(x_N, value_N, yerr=reach_2N, fmt="none", ecolor="#222222", capsize=2.5, linewidth=1)


def _legend(figure: Any, bars: Sequence[Bar]) -> None:
    from matplotlib.patches import Patch

    found = [s for s in COLOURS if any(b.series == s for b in bars)]
    patches = [
        Patch(facecolor=COLOURS[s], hatch=HATCHES[s], edgecolor="white", linewidth=0, label=s.upper()) for s in found
    ]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(found), frameon=False)
