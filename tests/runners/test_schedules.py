"""Learning rates by step."""

from __future__ import annotations

import math

import pytest

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry
from lavis_lite.runners.schedules import (
    Constant,
    LinearWarmupCosine,
    LinearWarmupStep,
    by_epochs,
    by_iterations,
    length_notes,
    warmup_notes,
)

STAGE_1 = RunConfig(init_lr=1e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=5000, lr_decay_rate=0.5)


def test_cosine_warms_up_linearly_then_falls_to_min_lr():
    schedule = LinearWarmupCosine.from_run(STAGE_1, total_steps=25_000, steps_per_epoch=1000)
    assert schedule.lr_at(0) == 1e-6
    assert schedule.lr_at(2500) == pytest.approx((1e-6 + 1e-4) / 2)
    assert schedule.lr_at(5000) == 1e-4
    assert schedule.lr_at(15_000) == pytest.approx((1e-4 + 1e-5) / 2)
    assert schedule.lr_at(10_000) == pytest.approx(1e-5 + 0.5 * 9e-5 * (1 + math.cos(math.pi / 4)))
    assert schedule.lr_at(25_000) == schedule.lr_at(30_000) == pytest.approx(1e-5)


def test_a_warm_up_that_is_as_long_as_the_run_is_told():
    [note] = warmup_notes(LinearWarmupCosine.from_run(STAGE_1, total_steps=501, steps_per_epoch=100))
    assert note.startswith("note: run.warmup_steps=5000 is no less than the 501 steps of the run")
    assert note.endswith("ends at 1.09e-05, below run.init_lr=0.0001")
    assert warmup_notes(LinearWarmupCosine.from_run(STAGE_1, total_steps=5001, steps_per_epoch=100)) == []
    assert warmup_notes(LinearWarmupCosine.from_run(RunConfig(init_lr=1e-4, warmup_steps=10), 5, 1)) == []


def test_cosine_has_no_jump():
    schedule = LinearWarmupCosine.from_run(STAGE_1, total_steps=25_000, steps_per_epoch=1000)
    rates = [schedule.lr_at(step) for step in range(25_001)]
    assert max(abs(late - early) for early, late in zip(rates, rates[1:], strict=False)) < 2.1e-8  # 1 / 5000 of init_lr


def test_negative_warmup_lr_starts_at_init_lr():
    schedule = LinearWarmupCosine.from_run(RunConfig(init_lr=1e-4, warmup_steps=10), 100, 10)
    assert [schedule.lr_at(step) for step in (0, 5, 10)] == [1e-4] * 3


def test_steps_go_down_in_stairs_and_stop_at_min_lr():
    schedule = LinearWarmupStep.from_run(STAGE_1, total_steps=25_000, steps_per_epoch=1000)
    assert [schedule.lr_at(step) for step in (5000, 5999, 6000, 7000)] == [1e-4, 1e-4, 5e-5, 2.5e-5]
    assert schedule.lr_at(24_999) == 1e-5


def test_constant_stays():
    schedule = Constant.from_run(STAGE_1, total_steps=25_000, steps_per_epoch=1000)
    assert schedule.lr_at(2500) == pytest.approx(5.05e-5)
    assert {schedule.lr_at(step) for step in (5000, 12_345, 25_000)} == {1e-4}


def test_a_run_shorter_than_its_warmup_only_warms_up():
    schedule = LinearWarmupCosine.from_run(STAGE_1, total_steps=100, steps_per_epoch=10)
    assert schedule.lr_at(99) == pytest.approx(1e-6 + 9.9e-5 * 99 / 5000)


def test_negative_rates_are_refused():
    with pytest.raises(ConfigError, match="run.init_lr is -1"):
        Constant(-1.0)


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "constant_lr"])
def test_lavis_names_are_registered(name):
    assert registry.get_lr_scheduler_class(name)(0.1).lr_at(0) == 0.1


def test_epochs_that_say_nothing_are_told() -> None:
    both = RunConfig(max_epoch=3, max_iters=50)
    assert [by_iterations(both, 10).total, by_epochs(both, 10).total, by_epochs(both, 100).total] == [50, 30, 50]
    assert length_notes(both, 50) == ["note: run.max_epoch=3 has no effect: the run ends after run.max_iters=50"]
    assert length_notes(both, 30) == length_notes(RunConfig(max_iters=50, max_epoch=None), 50) == []
