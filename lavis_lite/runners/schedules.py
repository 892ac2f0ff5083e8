"""Learning rates as pure functions of the optimizer step.

LAVIS moves the cosine once per epoch, warms up only inside epoch 0 and overwrites layer-wise factors. Here a schedule
knows no optimizer: `lr_at(step)` is the base rate of the 0-based optimizer step, and the runner multiplies
it by each group's `lr_scale`.
"""

from __future__ import annotations

import math

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


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
        raise NotImplementedError(f"{type(self).__name__} must define after_warmup")


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
