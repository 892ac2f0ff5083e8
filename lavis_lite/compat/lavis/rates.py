"""LAVIS' functions that set an optimizer's learning rate, for schedules that a project writes with them."""

from __future__ import annotations

import math
from typing import Any


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_lr_schedule(optimizer: Any, epoch: int, max_epoch: int, init_lr: float, min_lr: float) -> None:
    """Set the rate of an epoch on half a cosine from `init_lr` to `min_lr`."""
    _set_rate(optimizer, min_lr + (init_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / max_epoch)))


def warmup_lr_schedule(optimizer: Any, step: int, max_step: int, init_lr: float, max_lr: float) -> None:
    """Set the rate of a step on a line from `init_lr` to `max_lr`."""
    _set_rate(optimizer, min(max_lr, init_lr + (max_lr - init_lr) * step / max(max_step, 1)))


def step_lr_schedule(optimizer: Any, epoch: int, init_lr: float, min_lr: float, decay_rate: float) -> None:
    """Set the rate of an epoch, `init_lr` times `decay_rate` per epoch, at least `min_lr`."""
    _set_rate(optimizer, max(min_lr, init_lr * decay_rate ** epoch))
