"""What the rows of an ablation show: means, 95% confidence intervals over seeds, and whether a direction was found.

Intervals are Student's t. A direction compares two variants seed by seed, because runs of one seed share their data
order. It is found if three seeds or more have run, and the interval of the differences is above 0.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lavis_lite.errors import DataError
from lavis_lite.lab.ablation import Ablation, Expectation

Row = Mapping[str, Any]
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5th percentile of Student's t for 2 to 10 values; more values have an interval slightly too wide"""
FEWEST = 3
"""seeds of a verdict: two can agree by chance, and their interval is then far too narrow"""
Verdict = Literal["found", "opposite", "undecided", "not run"]
SENTENCES: dict[Verdict, str] = {
    "found": "the paper's direction is found", "opposite": "the opposite of the paper's direction is found",
    "undecided": "the direction is not decided: the interval contains 0",
    "not run": f"not run on {FEWEST} seeds or more"}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% confidence interval; NaN ends for fewer than two values."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        """`0.612 ± 0.021`."""
        return f"{self.mean:.3f}" + (f" ± {self.high - self.mean:.3f}" if len(self.values) > 1 else "")


def interval(values: Sequence[float]) -> Interval:
    """The mean of at least one value, with its interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, tuple(values))
    half = T95[min(len(values), len(T95) + 1) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, tuple(values))


@dataclass(frozen=True)
class Finding:
    """One expected direction, and the difference better - than over the seeds that both have."""

    expected: Expectation
    difference: Interval | None

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        if self.difference is None or len(self.difference.values) < FEWEST:
            return "not run"
        return "found" if self.difference.low > 0 else "opposite" if self.difference.high < 0 else "undecided"

    def sentence(self) -> str:
        """The comparison, its interval, and the verdict."""
        names = f"{self.expected.score}: {self.expected.better} over {self.expected.than}"
        if self.difference is None:
            return f"{names}: {SENTENCES['not run']}."
        d = self.difference
        bounds = f" [{d.low:+.3f}, {d.high:+.3f}]" if len(d.values) > 1 else ""
        return f"{names}: {d.mean:+.3f}{bounds}, {len(d.values)} seeds; {SENTENCES[self.verdict]}."


@dataclass(frozen=True)
class Summary:
    """An ablation with what its rows show.

    Attributes:
        scores: (variant, score) -> the interval of each seed's last point, where any seed has one.
        curves: (variant, score) -> optimizer step -> interval.
        findings: one per expected direction.
        seconds: variant -> mean processor time of all its steps, shared ones too, where it is known.
        seeds: those with any row. dates: of the runs.
    """

    ablation: Ablation
    scores: Mapping[tuple[str, str], Interval]
    curves: Mapping[tuple[str, str], Mapping[int, Interval]]
    findings: Sequence[Finding]
    seconds: Mapping[str, float]
    seeds: Sequence[int]
    dates: Sequence[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(head, rows): a variant per row, a score per column."""
        head = ["variant", *self.ablation.scores, "processor time"]
        rows = []
        for variant in self.ablation.variants:
            cells = [str(self.scores.get((variant, score), "-")) for score in self.ablation.scores]
            seconds = self.seconds.get(variant, math.nan)
            rows.append([variant, *cells, "-" if math.isnan(seconds) else f"{seconds:.0f} s"])
        return head, rows


def summarise(ablation: Ablation, rows: Sequence[Row]) -> Summary:
    """Means, intervals and verdicts of an ablation's rows; variants without rows are simply absent."""
    own = [row for row in rows if row["variant"] in ablation.variants]
    pairs = [(variant, score) for variant in ablation.variants for score in ablation.scores]
    curves = {pair: found for pair in pairs if (found := _curve(own, *pair))}
    seconds = {variant: [spent for row in own if row["variant"] == variant and (spent := _seconds(row)) is not None]
               for variant in ablation.variants}
    return Summary(ablation, {pair: interval([*_last(own, *pair).values()]) for pair in curves}, curves,
                   [_finding(one, own) for one in ablation.expected],
                   {variant: statistics.mean(values) for variant, values in seconds.items() if values},
                   sorted({row["seed"] for row in own}), sorted({row["date"] for row in own}))


def _curve(rows: Sequence[Row], variant: str, score: str) -> dict[int, Interval]:
    points = [point for row in rows if row["variant"] == variant for point in row["scores"].get(score, [])]
    return {at: interval([value for step, value in points if step == at]) for at in sorted({at for at, _ in points})}


def _seconds(row: Row) -> float | None:
    """Processor time of all steps; None if one of them was stopped in between."""
    known = row["seconds"].values()
    return None if None in known else sum(known)


def _last(rows: Sequence[Row], variant: str, score: str) -> dict[int, float]:
    """Seed -> the score's last point."""
    return {row["seed"]: row["scores"][score][-1][1] for row in rows
            if row["variant"] == variant and row["scores"].get(score)}


def _finding(expected: Expectation, rows: Sequence[Row]) -> Finding:
    better, than = (_last(rows, variant, expected.score) for variant in (expected.better, expected.than))
    common = [better[seed] - than[seed] for seed in better if seed in than]
    return Finding(expected, interval(common) if common else None)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if there is no file.

    Raises:
        DataError: a line is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(f"{path} has a damaged line ({error}); run the ablation again.") from error
