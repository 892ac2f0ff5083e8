"""The figure of an ablation: scores over optimizer steps, over a number of the variants, or one row per variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.io import atomic
from lavis_lite.lab.findings import Interval, Summary

Lines = dict[str, dict[float, Interval]]
"""name of a line -> x -> interval"""


def draw(summary: Summary, path: Path) -> None:
    """Write the figure as PNG: a panel per score, means with 95% intervals over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = [score for score in summary.ablation.scores if any(pair[1] == score for pair in summary.scores)]
    label, by_score = _lines(summary, scores)
    height = 3.6 if label else 1.2 + 0.42 * len(summary.ablation.variants)
    figure = Figure(figsize=(1.8 + 3.4 * len(scores), height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global pyplot state
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=not label)[0]
    for panel, score in zip(panels, scores, strict=True):
        if label:
            _draw_lines(panel, by_score[score])
            panel.set_xlabel(label)
        else:
            _draw_rows(panel, {name: summary.scores.get((name, score)) for name in summary.ablation.variants})
        panel.set_title(score, fontsize=10)
        panel.grid(alpha=0.25)
    if label and panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=8)
    with atomic.replaced(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def _lines(summary: Summary, scores: Sequence[str]) -> tuple[str, Mapping[str, Lines]]:
    """(label of the x axis, score -> lines); "" if the variants are rows."""
    axis = summary.ablation.axis
    found: dict[str, Lines] = {score: {} for score in scores}
    if axis is not None:
        for (variant, score), value in summary.scores.items():
            if variant in axis.at:
                found[score].setdefault(axis.lines.get(variant, ""), {})[axis.at[variant]] = value
        return axis.label, found
    for (variant, score), curve in summary.curves.items():
        found[score][variant] = {float(at): value for at, value in curve.items()}
    longest = max((len(line) for lines in found.values() for line in lines.values()), default=0)
    return ("optimizer steps" if longest > 1 else ""), found


def _draw_lines(panel: Any, lines: Lines) -> None:
    for name, points in lines.items():
        xs = sorted(points)
        line, = panel.plot(xs, [points[x].mean for x in xs], marker="o", markersize=4, label=name or None)
        panel.fill_between(xs, [points[x].low for x in xs], [points[x].high for x in xs], alpha=0.15,
                           color=line.get_color(), linewidth=0)


def _draw_rows(panel: Any, rows: Mapping[str, Interval | None]) -> None:
    names = list(rows)[::-1]
    for height, name in enumerate(names):
        value = rows[name]
        if value is not None:
            panel.plot(value.values, [height] * len(value.values), "o", markersize=4, alpha=0.45, color=f"C{height}")
            panel.errorbar(value.mean, height, xerr=value.high - value.mean, fmt="|", markersize=14, capsize=4,
                           color=f"C{height}")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.6, len(names) - 0.4)
