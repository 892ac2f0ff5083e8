"""Probabilities of data sets: from sizes, square roots and factors; what a dry run shows of them."""

from __future__ import annotations

import pytest

from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.runners.train_state import mixing_lines, mixing_ratios, published_mixing, refuse_lost_targets

SIZES = {"a": 400, "b": 100, "c": 900}


def config(factors: dict[str, float] | None = None, sizes: dict[str, int] | None = None, **run) -> Config:
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


def test_settings_that_do_not_fit():
    with pytest.raises(ConfigError, match="needs run.train_dataset_ratios"):
        shares(config(sampling="ratios"))
    with pytest.raises(ConfigError, match="lacks b, c"):
        shares(config(train_dataset_ratios={"a": 1.0}))


def test_sets_that_would_lose_their_answers_are_not_shuffled_together():
    class Of:
        def __init__(self, *keys):
            self.sample_keys = keys

    captions, questions = Of("image", "text_input"), Of("image", "text_input", "text_output")
    with pytest.raises(ConfigError, match="samples of b have a text_output .*; those of a have none"):
        refuse_lost_targets(["a", "b"], [captions, questions])
    refuse_lost_targets(["a", "b", "c"], [questions, questions, object()])


def test_what_a_dry_run_shows():
    assert mixing_lines(["a", "b"], [30, 10], None)[1].split() == ["b", "10", "samples", "p", "=", "0.2500"]
    assert "p = 0.5000" in published_mixing(config(sizes=SIZES, sampling="sqrt"))[2]
    assert published_mixing(config(sizes={"a": 5})) == []
