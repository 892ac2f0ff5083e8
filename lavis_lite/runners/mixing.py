"""With which probability a step draws from each data set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lavis_lite.config.schema import Config
from lavis_lite.errors import ConfigError, did_you_mean


def mixing_ratios(cfg: Config, names: Sequence[str], sizes: Sequence[int]) -> list[float] | None:
    """Probability weight of every training set, or None where all are shuffled together.

    A data set with several training splits shares its weight among them by size.

    Args:
        cfg: `run.sampling`, `run.train_dataset_ratios` and the sections' `sampling_factor` are used.
        names, sizes: of the training sets; a name may come several times.

    Raises:
        ConfigError: settings that contradict each other, or ratios that do not fit the data sets.
    """
    given, how = cfg.run.train_dataset_ratios, cfg.run.sampling
    if how == "together" or (how is None and given is None):
        return None
    totals = {name: sum(size for other, size in zip(names, sizes, strict=True) if other == name) for name in names}
    weights = {"size": lambda: {name: float(total) for name, total in totals.items()},
               "sqrt": lambda: {name: math.sqrt(total) for name, total in totals.items()}
               }.get(how or "ratios", lambda: _given(given, names))()
    return [weights[name] * cfg.datasets[name].sampling_factor * size / totals[name]
            for name, size in zip(names, sizes, strict=True)]


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


def mixing_lines(names: Sequence[str], sizes: Sequence[int], ratios: Sequence[float] | None) -> list[str]:
    """One line per training set: its samples and the probability that a step (or sample) is drawn from it."""
    weights = list(sizes) if ratios is None else list(ratios)
    total = sum(weights)
    return [f"{name:28} {size:>13,} samples   p = {weight / total if total else 0:.4f}"
            for name, size, weight in zip(names, sizes, weights, strict=True)]


def published_mixing(cfg: Config) -> list[str]:
    """As `mixing_lines`, by the sections' `train_size`; nothing where one has none."""
    sizes = {name: section.train_size for name, section in cfg.datasets.items()}
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(known) < len(sizes) or not known:
        return []
    names, counts = list(known), list(known.values())
    return mixing_lines(names, counts, mixing_ratios(cfg, names, counts))
