"""How often each data set is drawn: its weight at every step, from the configuration, and what is shown of it.

A weight is a number, or changes during the run (`datasets.<name>.sampling_factor` by step). It depends on the step and
nothing else, so a resumed run and all ranks draw the same sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lavis_lite.config.schema import Config, DatasetConfig, RunConfig
from lavis_lite.errors import ConfigError, did_you_mean

Ratio = float | list[list[float]]
"""weight of a data set: at all steps, or [step, weight] at some of them, in a straight line from one to the next"""


# --- weights at a step ------------------------------------------------------------------------------------------------
def weights_at(ratio: Ratio, steps: NDArray[np.integer]) -> NDArray[np.float64]:
    """The weight of one data set at each step: int64[N] -> float64[N]; before and after its points it is constant."""
    if isinstance(ratio, list):
        points, weights = zip(*ratio, strict=True)
        return np.interp(steps, points, weights)
    return np.full(len(steps), ratio, np.float64)


def shares_at(ratios: Sequence[Ratio], steps: NDArray[np.integer]) -> NDArray[np.float64]:
    """Probability of drawing from each data set at each step: int64[N] -> float64[N, sets]."""
    weights = [weights_at(ratio, steps) for ratio in ratios]
    total = sum(weights)
    return np.stack([weight / total for weight in weights], axis=1)


def turning_points(ratios: Sequence[Ratio]) -> NDArray[np.int64]:
    """Step 0 and all steps at which a weight begins to rise or fall: int64[N], ascending."""
    return np.array(sorted({0, *(int(step) for ratio in ratios if isinstance(ratio, list) for step, _ in ratio)}))


def check_ratios(ratios: Sequence[Ratio]) -> None:
    """Refuse weights that are no probabilities at some step. Between turning points they are if they are at both.

    Raises:
        ConfigError: a weight is negative, or all are 0 at a step; names the step.
    """
    steps = turning_points(ratios)
    table = np.stack([weights_at(ratio, steps) for ratio in ratios])
    for step, weights in zip(steps.tolist(), table.T.tolist(), strict=True):
        if any(not weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
            raise ConfigError(f"at step {step} the training data sets would be drawn with the weights {weights}; each "
                              "must be a number >= 0, not all of them 0. They come from run.train_dataset_ratios or "
                              "run.sampling, times datasets.<name>.sampling_factor.")


# --- from the configuration -------------------------------------------------------------------------------------------
def mixing_ratios(cfg: Config, names: Sequence[str], sizes: Sequence[int]) -> list[Ratio] | None:
    """Weight of every training set, or None where all are shuffled together.

    A data set with several training splits shares its weight among them by size.

    Args:
        cfg: `run.sampling`, `run.train_dataset_ratios` and the sections' `sampling_factor` are used.
        names, sizes: of the training sets; a name may come several times.

    Raises:
        ConfigError: settings that contradict each other, or ratios that do not fit the data sets.
    """
    given, how = cfg.run.train_dataset_ratios, cfg.run.sampling
    if not draws_by_set(cfg.run):
        return None
    totals = {name: sum(size for other, size in zip(names, sizes, strict=True) if other == name) for name in names}
    weights = {"size": lambda: {name: float(total) for name, total in totals.items()},
               "sqrt": lambda: {name: math.sqrt(total) for name, total in totals.items()}
               }.get(how or "ratios", lambda: _given(given, names))()
    return [_ratio(weights[name], cfg.datasets[name], size, totals[name])
            for name, size in zip(names, sizes, strict=True)]


def draws_by_set(run: RunConfig) -> bool:
    """Whether each step draws from one data set, rather than from all of them shuffled together."""
    return run.sampling not in (None, "together") or (run.sampling is None and run.train_dataset_ratios is not None)


def _ratio(weight: float, section: DatasetConfig, size: int, total: int) -> Ratio:
    """The weight of one training split, with `total` samples in all those of its data set."""
    factor = section.sampling_factor
    if isinstance(factor, Mapping):
        return [[step, weight * factor[key] * size / total] for step, key in sorted((int(key), key) for key in factor)]
    return weight * factor * size / total


def factor_error(factor: float | Mapping[str, float]) -> str:
    """What is wrong with a `sampling_factor`, as a sentence; "" if nothing is."""
    points = factor if isinstance(factor, Mapping) else {"0": factor}
    wrong = next((step for step in points if not step.isdecimal()), None)
    if wrong is not None or not points:
        return (f"{f'{wrong!r} is no step' if points else 'has no step'}; give factors by optimizer steps, such as "
                "{0: 1.0, 1000: 0.2}.")
    return "" if min(points.values()) >= 0 else f"must not be negative, but is {min(points.values())}."


def idle_factors(cfg: Config) -> list[str]:
    """A note on each `sampling_factor` that has no effect in a training."""
    if cfg.run.evaluate:
        return []
    factors = {f"datasets.{name}.sampling_factor": section.sampling_factor for name, section in cfg.datasets.items()}
    if not draws_by_set(cfg.run):
        return [f"{key} has no effect: all samples are shuffled together. Set run.sampling=size, or "
                "run.train_dataset_ratios." for key, factor in factors.items() if factor != 1.0]
    end = cfg.run.max_iters or math.inf
    return [f"{key}: the run ends at step {end}, before step {step}." for key, factor in factors.items()
            if isinstance(factor, Mapping) for step in factor if step.isdecimal() and int(step) >= end]


def _given(ratios: dict[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """`run.train_dataset_ratios`, checked."""
    if ratios is None:
        raise ConfigError("run.sampling=ratios needs run.train_dataset_ratios.")
    for name in ratios:
        if name not in names:
            raise ConfigError(f"run.train_dataset_ratios.{name}: no such training data set; "
                              f"{did_you_mean(name, names)}")
    lacking = sorted(set(names) - set(ratios))
    if lacking:
        raise ConfigError(f"run.train_dataset_ratios lacks {', '.join(lacking)}; give every training data set one.")
    return ratios


# --- what is shown ----------------------------------------------------------------------------------------------------
def mixing_lines(names: Sequence[str], sizes: Sequence[int], ratios: Sequence[Ratio] | None) -> list[str]:
    """One line per training set: its samples and the probability that a step (or sample) is drawn from it."""
    weights = [float(size) for size in sizes] if ratios is None else ratios
    check_ratios(weights)
    steps = turning_points(weights)
    return [f"{name:28} {size:>13,} samples   p = {_course(steps.tolist(), shares)}"
            for name, size, shares in zip(names, sizes, shares_at(weights, steps).T.tolist(), strict=True)]


def _course(steps: Sequence[int], shares: Sequence[float]) -> str:
    later = [f"{share:.4f} (step {step:,})" for step, share in zip(steps[1:], shares[1:], strict=True)]
    return " -> ".join([f"{shares[0]:.4f}", *later])


def published_mixing(cfg: Config) -> list[str]:
    """As `mixing_lines`, by the sections' `train_size`; nothing where one has none."""
    sizes = {name: section.train_size for name, section in cfg.datasets.items()}
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(known) < len(sizes) or not known:
        return []
    names, counts = list(known), list(known.values())
    return mixing_lines(names, counts, mixing_ratios(cfg, names, counts))
