"""How long a run is, and when to save, validate and log. All counts are optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError


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

    def validates(self, done: int, cfg: RunConfig, end: int) -> bool:
        """Whether the validation splits are due after `done` steps: every `val_freq` intervals, and at the end."""
        wanted = bool(cfg.valid_splits) and cfg.val_freq > 0
        return wanted and (done == end or self.ends_interval(done, cfg.val_freq))

    def logs(self, done: int, cfg: RunConfig) -> bool:
        """Whether the newest step is logged: the first, every `log_freq`-th and the last."""
        return done in (1, self.total) or done % max(cfg.log_freq, 1) == 0


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
