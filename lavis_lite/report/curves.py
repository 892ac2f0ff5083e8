"""Curves as SVG text. Colours are classes of the style sheet, so that the page's light and dark modes apply."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Series = tuple[Sequence[float], Sequence[float]]
"""(steps, values)"""
Panels = Mapping[str, Mapping[str, Series]]
"""panel title -> name of a curve -> its points"""

WIDTH, HEIGHT = 560, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 24
MOST_POINTS = 400
COLOURS = 6
"""classes c0 ... c5 of the style sheet"""


def escaped(text: str) -> str:
    """Text escaped for HTML; half of a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def figures(panels: Panels) -> str:
    """One `<figure>` per panel that has points."""
    return "".join(_figure(title, clean) for title, curves in panels.items() if (clean := _finite(curves)))


def _finite(curves: Mapping[str, Series]) -> dict[str, Series]:
    kept = {}
    for name, (steps, values) in curves.items():
        pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        if pairs:
            kept[name] = _thinned([step for step, _ in pairs], [value for _, value in pairs])
    return kept


def _thinned(steps: Sequence[float], values: Sequence[float]) -> Series:
    """At most MOST_POINTS points, with the last one."""
    stride = -(-len(steps) // MOST_POINTS)
    kept = sorted({*range(0, len(steps), stride), len(steps) - 1})
    return [steps[index] for index in kept], [values[index] for index in kept]


def _figure(title: str, curves: Mapping[str, Series]) -> str:
    xs, ys = ([value for series in curves.values() for value in series[axis]] for axis in (0, 1))
    y_ticks = ticks(min(ys), max(ys), 4)
    x_range, x_ticks = (min(xs), max(xs)), ticks(min(xs), max(xs), 5)
    if min(xs) == max(xs):  # one step: in the middle, under its own number
        x_range, x_ticks = (xs[0] - 1, xs[0] + 1), [xs[0]]
    y_range = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def point(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)
        y = TOP + (y_range[1] - value) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_row(point(x_range[0], tick)[1], tick) for tick in y_ticks]
    parts += [_column(point(tick, y_range[0])[0], tick) for tick in x_ticks if x_range[0] <= tick <= x_range[1]]
    parts += [_line(number, [point(*pair) for pair in zip(*series, strict=True)])
              for number, series in enumerate(curves.values())]
    names = "".join(f'<li class="c{number % COLOURS}">{escaped(name)}</li>' for number, name in enumerate(curves))
    label = escaped(f"{title} over optimizer steps")
    return (f'<figure class="curve"><figcaption>{escaped(title)}<ul class="legend">{names}</ul></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>')


def _row(y: float, value: float) -> str:
    return (f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5}" text-anchor="end">{value:.4g}</text>')


def _column(x: float, value: float) -> str:
    return f'<text class="tick" x="{x}" y="{HEIGHT - 6}" text-anchor="middle">{value:,.0f}</text>'


def _line(number: int, points: Sequence[tuple[float, float]]) -> str:
    colour = f"c{number % COLOURS}"
    if len(points) == 1:
        return f'<circle class="dot {colour}" cx="{points[0][0]}" cy="{points[0][1]}" r="3"/>'
    return f'<polyline class="line {colour}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span [low, high], about `about` of them and at least two."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
