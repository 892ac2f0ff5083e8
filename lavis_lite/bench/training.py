"""Training steps as sides of a comparison: the runner's own, and the plain loop that peers have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.config.schema import RunConfig
from lavis_lite.device import Precision, to_device
from lavis_lite.models.base import BaseModel
from lavis_lite.runners.optim import build_optimizer
from lavis_lite.runners.schedules import Constant
from lavis_lite.runners.step import TrainStep, wrap_for_ranks

ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "weight_decay": 0.05}
Turn = Callable[[dict[str, Any]], object]


class _LossTask:
    """Stands in for a task: the loss of a module."""

    def train_step(self, model: nn.Module, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and no parts."""
        return loss_of(model(samples)), {}


def loss_of(output: Any) -> Tensor:
    """The loss float[] of an output."""
    loss: Tensor = output if isinstance(output, Tensor) else output.loss
    return loss


def our_step(module: nn.Module, model: BaseModel, device: torch.device, precision: Precision) -> Turn:
    """The runner's step, under DDP if there are several ranks.

    Args:
        module: samples -> loss, or an output with `loss`; may be the model itself.
        model: has the parameters.
        device, precision: where and in which dtype.
    """
    run = RunConfig(init_lr=ADAMW["lr"], beta1=ADAMW["betas"][0], beta2=ADAMW["betas"][1],
                    weight_decay=ADAMW["weight_decay"])
    wrapped = wrap_for_ranks(module, device, find_unused_parameters=False)
    step = TrainStep(_LossTask(), wrapped, build_optimizer(model, run), Constant(ADAMW["lr"]), run, device, precision)
    done = 0

    def turn(samples: dict[str, Any]) -> None:
        nonlocal done
        step.run(done, [samples])
        step.agree()
        done += 1

    return turn


def plain_step(module: nn.Module, device: torch.device, precision: Precision) -> Turn:
    """Forward, backward and the same fused AdamW, without the runner's agreement, clipping norm and counters.

    Args:
        module: samples -> loss.
        device, precision: as in `our_step`.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, fused=True, **ADAMW)

    def turn(samples: dict[str, Any]) -> None:
        with precision.autocast():
            loss = loss_of(module(to_device(samples, device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return turn
