"""Training steps as sides of a comparison: the runner's own, and the plain loop that peers have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.bench.counters import matmul_flops
from lavis_lite.bench.timing import processor_time, synchronise
from lavis_lite.config.schema import RunConfig
from lavis_lite.costs.account import gradient_bytes
from lavis_lite.costs.scaling import Phases, Scaling
from lavis_lite.device import Precision, to_device
from lavis_lite.models.base import BaseModel
from lavis_lite.runners.optim import build_optimizer
from lavis_lite.runners.ranks import wrap_for_ranks
from lavis_lite.runners.schedules import Constant
from lavis_lite.runners.step import TrainStep

ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "weight_decay": 0.05}
Turn = Callable[[dict[str, Any]], object]


class _LossTask:
    """Stands in for a task: the loss of a module."""

    def __init__(self) -> None:
        self.after_forward = _nothing

    def train_step(self, model: nn.Module, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and no parts."""
        loss = loss_of(model(samples))
        self.after_forward()
        return loss, {}


def _nothing() -> None:
    """No phase is measured."""


def loss_of(output: Any) -> Tensor:
    """The loss float[] of an output."""
    loss: Tensor = output if isinstance(output, Tensor) else output.loss
    return loss


class OurStep:
    """The runner's step, under DDP if there are several ranks; call it with samples.

    Args:
        module: samples -> loss, or an output with `loss`; may be the model itself.
        model: has the parameters.
        device, precision: where and in which dtype.
    """

    def __init__(self, module: nn.Module, model: BaseModel, device: torch.device, precision: Precision) -> None:
        self.run = RunConfig(init_lr=ADAMW["lr"], beta1=ADAMW["betas"][0], beta2=ADAMW["betas"][1],
                             weight_decay=ADAMW["weight_decay"])
        wrapped = wrap_for_ranks(module, device, self.run)
        self.model, self.device, self.task, self.done = model, device, _LossTask(), 0
        self.step = TrainStep(self.task, wrapped, build_optimizer(model, self.run), Constant(ADAMW["lr"]), self.run,
                              device, precision)

    def __call__(self, samples: dict[str, Any]) -> None:
        """Do a step."""
        self.step.run(self.done, [samples])
        self.step.agree()
        self.done += 1

    def phases(self, samples: dict[str, Any]) -> Phases:
        """Seconds of the parts of one more step: by the clock on a GPU, of the processor on a CPU."""
        marks: dict[str, float] = {}

        def mark(name: str) -> None:
            synchronise(self.device)
            marks[name] = processor_time() if self.device.type == "cpu" else time.perf_counter()

        with contextlib.ExitStack() as stack:
            encoder, optimizer = getattr(self.model, "vision_encoder", None), self.step.optimizer
            hooks = [optimizer.register_step_pre_hook(lambda *given: mark("backward"))]
            if encoder is not None and getattr(self.model, "freeze_vit", False):
                hooks.append(encoder.register_forward_hook(lambda *given: mark("frozen")))
            for hook in hooks:
                stack.callback(hook.remove)
            self.task.after_forward = lambda: mark("forward")
            stack.callback(setattr, self.task, "after_forward", _nothing)
            mark("start")
            self(samples)
            mark("update")
        seen = marks.get("frozen", marks["start"])
        return Phases(seen - marks["start"], marks["forward"] - seen, marks["backward"] - marks["forward"],
                      marks["update"] - marks["backward"])

    def scaling(self, samples: dict[str, Any], batch: int) -> Scaling:
        """Predicted growth of the step with the number of ranks, from the phases of one more step.

        Args:
            samples: of this rank.
            batch: their number.
        """
        return Scaling(self.phases(samples), gradient_bytes(self.model, self.run),
                       partial(self.model.exchanged, batch, dtype=self.step.precision.dtype),
                       matmul_flops(self.device, torch.float32))


def plain_step(module: nn.Module, device: torch.device, precision: Precision) -> Turn:
    """Forward, backward and the same fused AdamW, without the runner's agreement, clipping norm and counters.

    Args:
        module: samples -> loss.
        device, precision: as in `OurStep`.
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
