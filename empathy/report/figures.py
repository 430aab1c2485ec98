"""Bar charts as SVG, and the numbers of each as csv. matplotlib is loaded when the first is drawn."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

COLOURS = {"base": "#999999", "sft": "#0072B2", "dpo": "#E69F00", "sft+dpo": "#009E73"}
"""Okabe and Ito's palette: told apart with every kind of colour vision; hatches tell them apart in print."""
HATCHES = {"base": "", "sft": "//", "dpo": "..", "sft+dpo": "xx"}


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
    panels = list(dict.fromkeys(b.panel for b in bars))
    with plt.rc_context({**style, "hatch.linewidth": 0.5}):
        widest = max(sum(b.panel == p for b in bars) for p in panels)
        widest_groups = max(len({b.group for b in bars if b.panel == p}) for p in panels)
        width = max(3.9, 0.42 * widest + 1.2, 1.15 * widest_groups + 0.9)  # inches: bars, and the names under them
        columns = max(1, min(len(panels), int(13 // width)))
        rows = -(-len(panels) // columns)
        size = (width * columns, 2.7 * rows + 0.5)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, panel in zip(axes.flat, panels, strict=False):
            _panel(axis, panel, [b for b in bars if b.panel == panel], label, top, line)
        _legend(figure, bars)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = out.getvalue()
    return Figure(name, title, caption, svg[svg.index("<svg") :], as_csv(bars))


def _panel(axis: Any, panel: str, bars: Sequence[Bar], label: str, top: float | None, line: float | None) -> None:
    groups = list(dict.fromkeys(b.group for b in bars))
    series = [s for s in COLOURS if any(b.series == s for b in bars)]
    width = 0.8 / max(sum(b.group == g for b in bars) for g in groups)
    for bar in bars:
        members = sorted((b for b in bars if b.group == bar.group), key=lambda b: series.index(b.series))
        x = groups.index(bar.group) + (members.index(bar) - (len(members) - 1) / 2) * width
        axis.bar(
            x,
            bar.value,
            width * 0.92,
            color=COLOURS[bar.series],
            hatch=HATCHES[bar.series],
            edgecolor="white",
            linewidth=0,
        )
        if bar.low is not None and bar.high is not None:
            reach = np.array([[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]])
            axis.errorbar(x, bar.value, yerr=reach, color="#222222", capsize=2.5, linewidth=1)
    if line is not None:
        axis.axhline(line, color="#222222", linestyle="--", linewidth=0.9)
    axis.set_ylim(0, top)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_xticks(range(len(groups)), [textwrap.fill(g, 15) for g in groups], fontsize=8)
    axis.set_ylabel(label)
    axis.set_title(panel, loc="left", fontsize=9, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, bars: Sequence[Bar]) -> None:
    from matplotlib.patches import Patch

    found = [s for s in COLOURS if any(b.series == s for b in bars)]
    patches = [
        Patch(facecolor=COLOURS[s], hatch=HATCHES[s], edgecolor="white", linewidth=0, label=s.upper()) for s in found
    ]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(found), frameon=False)
