"""How long a run is, and when in it something is due. All counts are optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError


@dataclass(frozen=True)
class Bounds:
    """A run of `total` steps in units (epochs, or inner epochs) of `unit` steps."""

    total: int
    unit: int

    def epoch(self, done: int) -> int:
        """0-based unit in which the newest of `done` steps lies."""
        return max(done - 1, 0) // self.unit

    def ends_unit(self, done: int, every: int) -> bool:
        """Whether `done` steps are a multiple of `every` whole units; never for `every` below 1."""
        return every > 0 and done > 0 and done % (every * self.unit) == 0

    def saves(self, done: int, cfg: RunConfig) -> bool:
        """Whether a checkpoint is due after `done` steps."""
        by_steps = cfg.save_every is not None and cfg.save_every > 0 and done % cfg.save_every == 0
        return by_steps or self.ends_unit(done, cfg.save_freq) or (cfg.save_last and done == self.total)

    def validates(self, done: int, cfg: RunConfig) -> bool:
        """Whether the validation splits are due after `done` steps: every `val_freq` units, and at the end."""
        wanted = bool(cfg.valid_splits) and cfg.val_freq > 0
        return wanted and (done == self.total or self.ends_unit(done, cfg.val_freq))

    def logs(self, done: int, cfg: RunConfig) -> bool:
        """Whether the newest step is logged: the first, every `log_freq`-th and the last."""
        return done in (1, self.total) or done % max(cfg.log_freq, 1) == 0


def by_epochs(cfg: RunConfig, steps_per_epoch: int) -> Bounds:
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


def by_iterations(cfg: RunConfig, steps_per_epoch: int) -> Bounds:
    """`max_iters` steps (or `max_epoch` passes, where only that is given) in units of `iters_per_inner_epoch`.

    Raises:
        ConfigError: no end is given.
    """
    if cfg.max_iters is None and cfg.max_epoch is None:
        raise ConfigError("the run has no end: run.runner=runner_iter needs run.max_iters.")
    total = cfg.max_iters if cfg.max_iters is not None else (cfg.max_epoch or 0) * steps_per_epoch
    return _checked(total, cfg.iters_per_inner_epoch or steps_per_epoch)


def _checked(total: int, unit: int) -> Bounds:
    if total < 1 or unit < 1:
        raise ConfigError(f"the run would have {total} optimizer steps in units of {unit}; both must be at least 1. "
                          "Check run.max_epoch, run.max_iters and run.iters_per_inner_epoch.")
    return Bounds(total, unit)
