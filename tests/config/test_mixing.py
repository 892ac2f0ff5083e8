"""Probabilities of data sets: from sizes, square roots and factors; what a dry run shows of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lavis_lite.config.mixing import (
    check_ratios,
    factor_error,
    idle_factors,
    mixing_lines,
    mixing_ratios,
    published_mixing,
    shares_at,
)
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.errors import ConfigError

SIZES = {"a": 400, "b": 100, "c": 900}


def config(factors: dict[str, Any] | None = None, sizes: dict[str, int] | None = None, **run) -> Config:
    sections = {name: DatasetConfig(sampling_factor=(factors or {}).get(name, 1.0), train_size=(sizes or {}).get(name))
                for name in SIZES}
    return Config(ModelConfig(), PreprocessConfig(), sections, RunConfig(**run))


def shares(cfg: Config) -> list[float] | None:
    weights = mixing_ratios(cfg, list(SIZES), list(SIZES.values()))
    return None if weights is None else [round(weight / sum(weights), 6) for weight in weights]


def test_ways_of_mixing():
    assert shares(config()) is None and shares(config(sampling="together")) is None
    assert shares(config(sampling="size")) == [round(size / 1400, 6) for size in SIZES.values()]
    assert shares(config(sampling="sqrt")) == [round(20 / 60, 6), round(10 / 60, 6), 0.5]
    assert shares(config({"c": 0.5, "b": 2}, sampling="sqrt")) == [round(part / 55, 6) for part in (20, 20, 15)]
    given = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert shares(config(train_dataset_ratios=given)) == shares(config(train_dataset_ratios=given, sampling="ratios"))


def test_two_splits_of_a_set_share_its_weight():
    weights = mixing_ratios(config(sampling="sqrt"), ["a", "a", "b"], [300, 100, 100])
    assert weights == pytest.approx([15, 5, 10])


def test_a_factor_by_steps():
    cfg = config({"a": {"0": 1.0, "1000": 0.0, "200": 1.0}}, sampling="size")
    ratios = mixing_ratios(cfg, ["a", "b"], [400, 400])
    assert ratios == [[[0, 400.0], [200, 400.0], [1000, 0.0]], 400.0]
    half, third = shares_at(ratios, np.array([0, 150, 200]))[:, 0], shares_at(ratios, np.array([600, 1000, 5000]))[:, 0]
    assert half.tolist() == [0.5] * 3 and third.tolist() == [pytest.approx(1 / 3), 0.0, 0.0]
    line = mixing_lines(["a", "b"], [400, 400], ratios)[0]
    assert line.endswith("p = 0.5000 -> 0.5000 (step 200) -> 0.0000 (step 1,000)")
    with pytest.raises(ConfigError, match="at step 7 .* not all of them 0"):
        check_ratios([[[0, 1.0], [7, 0.0]], 0.0])


@pytest.mark.parametrize(("factor", "run", "sentence"), [
    ({"0": 1.0, "1e3": 2.0}, {"sampling": "size"}, "'1e3' is no step; give factors by optimizer steps"),
    ({}, {"sampling": "size"}, "has no step"),
    ({"9": -1.0}, {"sampling": "size"}, "must not be negative, but is -1.0"),
    (2.0, {}, "has no effect: all samples are shuffled together"),
    ({"0": 1.0, "30": 2.0}, {"sampling": "size", "max_iters": 20}, "the run ends at step 20, before step 30"),
])
def test_factors_that_are_wrong_or_idle(factor, run, sentence):
    notes = idle_factors(config({"a": factor}, **run))
    assert sentence in factor_error(factor) or [note for note in notes if sentence in note]
    assert idle_factors(config({"a": factor}, evaluate=True, **run)) == []


def test_settings_that_do_not_fit():
    with pytest.raises(ConfigError, match="needs run.train_dataset_ratios"):
        shares(config(sampling="ratios"))
    with pytest.raises(ConfigError, match="lacks b, c"):
        shares(config(train_dataset_ratios={"a": 1.0}))


def test_what_a_dry_run_shows():
    assert mixing_lines(["a", "b"], [30, 10], None)[1].split() == ["b", "10", "samples", "p", "=", "0.2500"]
    assert "p = 0.5000" in published_mixing(config(sizes=SIZES, sampling="sqrt"))[2]
    assert published_mixing(config(sizes={"a": 5})) == []
