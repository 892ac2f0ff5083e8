"""Pure functions of the optimizer step: learning rates, the length of a run, and when to save, validate and log.

LAVIS moves the cosine once per epoch, warms up only inside epoch 0 and overwrites layer-wise factors. Here a schedule
knows no optimizer: `lr_at(step)` is the base rate of the 0-based optimizer step, and the runner multiplies
it by each group's `lr_scale`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, UndefinedMethodError
from lavis_lite.registry import registry


# --- learning rates --------------------------------------------------------------------------------------------------
class LRSchedule:
    """Base of all schedules: a linear warm-up, then `after_warmup`.

    Args:
        init_lr: rate at the end of the warm-up.
        min_lr: the lowest rate after the warm-up.
        warmup_lr: rate of step 0; below 0 means `init_lr`, so no warm-up at all.
        warmup_steps: optimizer steps from `warmup_lr` to `init_lr`.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one (inner) epoch.
        decay_rate: factor per epoch, for schedules that go down in stairs.

    Raises:
        ConfigError: a rate or a count is negative.
    """

    def __init__(self, init_lr: float, *, min_lr: float = 0.0, warmup_lr: float = -1.0, warmup_steps: int = 0,
                 total_steps: int = 1, steps_per_epoch: int = 1, decay_rate: float = 1.0) -> None:
        for key, value in (("init_lr", init_lr), ("min_lr", min_lr), ("warmup_steps", warmup_steps)):
            if value < 0:
                raise ConfigError(f"run.{key} is {value}, but must not be negative.")
        self.init_lr, self.min_lr = init_lr, min_lr
        self.warmup_lr = warmup_lr if warmup_lr >= 0 else init_lr
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.steps_per_epoch, self.decay_rate = max(steps_per_epoch, 1), decay_rate

    @classmethod
    def from_run(cls, cfg: RunConfig, total_steps: int, steps_per_epoch: int) -> LRSchedule:
        """The schedule that a `run:` section describes."""
        return cls(cfg.init_lr, min_lr=cfg.min_lr, warmup_lr=cfg.warmup_lr, warmup_steps=cfg.warmup_steps,
                   total_steps=total_steps, steps_per_epoch=steps_per_epoch,
                   decay_rate=1.0 if cfg.lr_decay_rate is None else cfg.lr_decay_rate)

    def lr_at(self, step: int) -> float:
        """Base learning rate of the 0-based optimizer step `step`."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.init_lr - self.warmup_lr) * step / self.warmup_steps
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """The rate of a step after the warm-up; at `warmup_steps` it must be `init_lr`."""
        raise UndefinedMethodError.of(self, "after_warmup")


def warmup_notes(schedule: LRSchedule) -> list[str]:
    """A note if the warm-up is as long as the run, which then never trains at its learning rate."""
    steps, total = schedule.warmup_steps, schedule.total_steps
    if steps < total or schedule.warmup_lr >= schedule.init_lr:
        return []
    return [f"note: run.warmup_steps={steps} is no less than the {total} steps of the run. The learning rate ends at "
            f"{schedule.lr_at(total - 1):.3g}, below run.init_lr={schedule.init_lr:.3g}"]


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
class LinearWarmupCosine(LRSchedule):
    """Half a cosine from `init_lr`, at the end of the warm-up, to `min_lr`, at the end of the run."""

    def after_warmup(self, step: int) -> float:
        """`init_lr` at `warmup_steps`, `min_lr` at `total_steps`."""
        rest = max(self.total_steps - self.warmup_steps, 1)
        done = min((step - self.warmup_steps) / rest, 1.0)
        return self.min_lr + 0.5 * (self.init_lr - self.min_lr) * (1.0 + math.cos(math.pi * done))


@registry.register_lr_scheduler("linear_warmup_step_lr")
class LinearWarmupStep(LRSchedule):
    """`init_lr * decay_rate ** epoch`, never below `min_lr`; epochs are counted from the end of the warm-up."""

    def after_warmup(self, step: int) -> float:
        """One stair per epoch."""
        epoch = (step - self.warmup_steps) // self.steps_per_epoch
        return max(self.min_lr, self.init_lr * self.decay_rate ** epoch)


@registry.register_lr_scheduler("constant_lr")
class Constant(LRSchedule):
    """`init_lr` after the warm-up, to the end."""

    def after_warmup(self, step: int) -> float:
        """Always `init_lr`."""
        return self.init_lr


# --- length of a run -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TrainSchedule:
    """A run of `total` steps in intervals (epochs, or inner epochs) of `interval` steps.

    A run may end before `total`: the questions whether something is due take the last step as `end`.
    """

    total: int
    interval: int

    def epoch(self, done: int) -> int:
        """0-based interval of the newest of `done` steps."""
        return max(done - 1, 0) // self.interval

    def ends_interval(self, done: int, every: int) -> bool:
        """Whether `done` steps are a multiple of `every` whole intervals; never for `every` below 1."""
        return every > 0 and done > 0 and done % (every * self.interval) == 0

    def saves(self, done: int, cfg: RunConfig, end: int) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        by_steps = cfg.save_every is not None and cfg.save_every > 0 and done % cfg.save_every == 0
        return by_steps or self.ends_interval(done, cfg.save_freq) or (cfg.save_last and done == end)

    def saves_later(self, done: int, cfg: RunConfig) -> bool:
        """Whether a checkpoint may become due after more than `done` steps."""
        return done < self.total and (cfg.save_last or (cfg.save_every or 0) > 0 or cfg.save_freq > 0)

    def validates(self, done: int, cfg: RunConfig, end: int) -> bool:
        """Whether the validation splits are due after `done` steps: every `val_freq` intervals, and at the end."""
        wanted = bool(cfg.valid_splits) and cfg.val_freq > 0
        return wanted and (done == end or self.ends_interval(done, cfg.val_freq))

    def logs(self, done: int, cfg: RunConfig) -> bool:
        """Whether the newest step is logged: the first, every `log_freq`-th and the last."""
        return done in (1, self.total) or done % max(cfg.log_freq, 1) == 0


def length_notes(cfg: RunConfig, total: int) -> list[str]:
    """A note if `max_epoch` does not say when a run of `total` steps ends."""
    if cfg.max_epoch is None or total != cfg.max_iters:
        return []
    return [f"note: run.max_epoch={cfg.max_epoch} has no effect: the run ends after run.max_iters={total}"]


def by_epochs(cfg: RunConfig, steps_per_epoch: int) -> TrainSchedule:
    """`max_epoch` passes over the data; `max_iters` ends the run earlier, and suffices alone.

    Raises:
        ConfigError: neither is given.
    """
    ends = []
    if cfg.max_epoch is not None:
        ends.append(cfg.max_epoch * steps_per_epoch)
    if cfg.max_iters is not None:
        ends.append(cfg.max_iters)
    if not ends:
        raise ConfigError("the run has no end: set run.max_epoch (or run.max_iters).")
    return _checked(min(ends), steps_per_epoch)


def by_iterations(cfg: RunConfig, steps_per_epoch: int) -> TrainSchedule:
    """`max_iters` steps (or `max_epoch` passes, if only that is given) in intervals of `iters_per_inner_epoch`.

    Raises:
        ConfigError: no end is given.
    """
    if cfg.max_iters is None and cfg.max_epoch is None:
        raise ConfigError("the run has no end: run.runner=runner_iter needs run.max_iters.")
    total = cfg.max_iters if cfg.max_iters is not None else (cfg.max_epoch or 0) * steps_per_epoch
    return _checked(total, cfg.iters_per_inner_epoch or steps_per_epoch)


def _checked(total: int, interval: int) -> TrainSchedule:
    if total < 1 or interval < 1:
        raise ConfigError(f"the run would have {total} optimizer steps in intervals of {interval}; both must be at "
                          "least 1. Check run.max_epoch, run.max_iters and run.iters_per_inner_epoch.")
    return TrainSchedule(total, interval)
