"""Bootstrap confidence intervals for two runs on the same samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
FEWEST = 6
"""pictures of a verdict: so many better by chance are rarer than one in twenty, five are not (the sign test)"""
_NUMBERS = 4_000_000
"""random numbers in memory at once"""


@dataclass(frozen=True)
class Interval:
    """A mean over samples, and the interval of 95 % of its resampled values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Means of two runs over the same samples, and of their difference.

    Attributes:
        a, b: each run.
        difference: b - a, both resampled together.
        better: share of resamples in which b's mean is above a's, ties counted half.
        groups: what is resampled: pictures with all their samples, or single samples.
    """

    a: Interval
    b: Interval
    difference: Interval
    better: float
    groups: int

    @property
    def differ(self) -> bool:
        """Whether there are pictures enough to tell, and the interval of the difference does not contain 0."""
        return self.groups >= FEWEST and (self.difference.low > 0 or self.difference.high < 0)


def paired(a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable] | None = None,
           resamples: int = RESAMPLES, seed: int = SEED) -> Paired:
    """Percentile bootstrap (Efron 1979): each resample draws as many groups as there are, with replacement.

    Questions about one picture are right or wrong together, so that single samples would give too narrow intervals.

    Args:
        a, b: scores of the same samples in the same order.
        groups: the picture of each sample; None: each sample alone.
        resamples: their number.
        seed: of the draws; equal arguments give equal numbers.

    Raises:
        ValueError: no samples, or different numbers of them.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} scores cannot be paired")
    pairs = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64), np.ones(len(a))], axis=1)
    numbers: dict[Hashable, int] = {}
    rows = [numbers.setdefault(group, len(numbers)) for group in (range(len(a)) if groups is None else groups)]
    sums = np.zeros((len(numbers), 3))
    np.add.at(sums, rows, pairs)
    drawn = _resampled(sums, resamples, np.random.default_rng(seed))
    means = drawn[:, :2] / drawn[:, 2:]
    difference = means[:, 1] - means[:, 0]
    exact = pairs.mean(0)
    better = float(np.mean(difference > 0) + np.mean(difference == 0) / 2)
    return Paired(_interval(float(exact[0]), means[:, 0]), _interval(float(exact[1]), means[:, 1]),
                  _interval(float(exact[1] - exact[0]), difference), better, len(sums))


def _resampled(pairs: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of every resample, float64[R, 3].

    If there are few different pairs (right or wrong), the counts of each are drawn from the multinomial distribution.
    This is equivalent, at a cost that does not depend on N.
    """
    different, counts = np.unique(pairs, axis=0, return_counts=True)
    if len(different) <= 200:
        drawn = generator.multinomial(len(pairs), counts / len(pairs), size=resamples)
        return drawn @ different / len(pairs)
    at_once = max(1, _NUMBERS // len(pairs))
    parts = [pairs[generator.integers(0, len(pairs), (min(at_once, resamples - start), len(pairs)))].mean(1)
             for start in range(0, resamples, at_once)]
    return np.concatenate(parts)


def _interval(mean: float, values: NDArray[np.float64]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))
