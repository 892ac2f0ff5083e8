"""A picture of a run: losses and learning rate over optimizer steps, drawn from log.jsonl when the run ends."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lavis_lite.tracking.jsonl import read
from lavis_lite.tracking.sink import Sink

Rows = list[dict[str, Any]]
Panels = dict[str, dict[str, tuple[list[int], list[float]]]]
"""panel title -> name of a curve -> (steps, values)"""


class Curves(Sink):
    """Draws `curves.png` at the end, or reports that matplotlib is missing."""

    def __init__(self, log: Path, picture: Path, log_line: Callable[[str], None] = print) -> None:
        self.log_file, self.picture, self.log_line = Path(log), Path(picture), log_line

    def close(self) -> None:
        """Draw the log's records, unless an error or a signal ends the run: matplotlib would take seconds then."""
        if sys.exc_info()[0] is not None or not self.log_file.exists():
            return
        if importlib.util.find_spec("matplotlib") is None:
            self.log_line("matplotlib is not installed, so curves.png is not drawn: `pip install matplotlib`.")
        else:
            draw(read(self.log_file), self.picture)


def series(rows: Rows) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of every training loss, in order of first appearance."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        if "split" in row or "hook" in row or "loss" not in row:
            continue
        for name, value in row.items():
            if name.startswith("loss") and isinstance(value, int | float):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return found


def panels(rows: Rows) -> Panels:
    """Every curve of a log by the panel it belongs to: losses, learning rate, agg_metrics by split."""
    train = [row for row in rows if not {"split", "hook"} & row.keys() and isinstance(row.get("lr"), int | float)]
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {"loss (nats)": series(rows)}
    found["learning rate"] = {"lr": ([row["step"] for row in train], [row["lr"] for row in train])} if train else {}
    scores = found["agg_metrics"] = {}
    for row in rows:
        if "split" in row and isinstance(row.get("agg_metrics"), int | float):
            steps, values = scores.setdefault(row["split"], ([], []))
            steps.append(row["step"])
            values.append(row["agg_metrics"])
    trained = bool(found["loss (nats)"])
    return {title: curves for title, curves in found.items() if trained and curves}


def draw(rows: Rows, picture: Path) -> bool:
    """Draw the curves of a log with matplotlib; False where there is nothing to draw.

    One panel for the losses, one for the learning rate, and one for `agg_metrics` where splits were evaluated.
    """
    losses = series(rows)
    if not losses:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [row for row in rows if "split" in row and isinstance(row.get("agg_metrics"), int | float)]
    figure = Figure(figsize=(8, 7 if not metrics else 9), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global pyplot state in a notebook
    panels = figure.subplots(2 + bool(metrics), 1, sharex=True, height_ratios=[3, 1] + [1.5] * bool(metrics))
    for name, (steps, values) in losses.items():
        panels[0].plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.2,
                       marker="o" if len(steps) < 3 else None)
    panels[0].set(ylabel="loss (nats)", title=picture.parent.name)
    panels[0].legend(frameon=False)
    train = [row for row in rows if "lr" in row and "hook" not in row]
    panels[1].plot([row["step"] for row in train], [row["lr"] for row in train], color="tab:gray")
    panels[1].set_ylabel("learning rate")
    _draw_metrics(panels, metrics)
    panels[-1].set_xlabel("optimizer step")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    return True


def _draw_metrics(panels: Any, metrics: Rows) -> None:
    for split in dict.fromkeys(row["split"] for row in metrics):
        rows = [row for row in metrics if row["split"] == split]
        panels[2].plot([row["step"] for row in rows], [row["agg_metrics"] for row in rows], marker="o", label=split)
    if metrics:
        panels[2].set_ylabel("agg_metrics")
        panels[2].legend(frameon=False)
