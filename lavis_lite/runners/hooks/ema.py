"""An exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from torch import Tensor

    from lavis_lite.models.base import BaseModel
    from lavis_lite.runners.step import StepResult


@registry.register_hook("ema")
class EMA(Hook):
    """Keeps `average <- d * average + (1 - d) * weights` of every trained parameter, in float32 on its device.

    Checkpoints keep the averages in `ema.safetensors`, which loads as any checkpoint: `evaluate.py --run RUN --options
    run.weights=ema`, or `load_model(run=RUN, weights="ema")`.

    Args:
        decay: d, the share of the average that stays after `every` steps.
        warm_up: the n-th update uses at most (1 + n) / (10 + n) as its decay, so that the start is soon forgotten.
        evaluate: validate and test the averages in place of the weights.
    """

    keeps_weights: ClassVar[bool] = True

    def __init__(self, decay: float = 0.9999, warm_up: bool = True, evaluate: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"run.hooks.ema.decay: must be at least 0 and below 1, not {decay}.")
        self.decay, self.warm_up, self.evaluate = decay, warm_up, evaluate
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_start(self, run: RunContext) -> None:
        """The average begins at the present weights, unless a checkpoint brought it."""
        from lavis_lite import distributed

        weights = trained(run.model)
        if not self.average:
            self.average = {name: weight.detach().float().clone() for name, weight in weights.items()}
        self.average = {name: distributed.part_like(self.average[name].to(weight.device), weight)
                        for name, weight in weights.items()}

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """One update; the whole model takes a few kernels."""
        import torch

        from lavis_lite import distributed

        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        self.updates += 1
        weights = [distributed.local_part(weight.detach()).float() for weight in trained(run.model).values()]
        torch._foreach_lerp_(list(map(distributed.local_part, self.average.values())), weights, 1.0 - decay)

    @contextlib.contextmanager
    def during_evaluation(self, run: RunContext) -> Iterator[None]:
        """With `evaluate` the model has the averages inside, if there are any, and its own weights again afterwards."""
        if not self.evaluate or not self.average:
            yield
            return
        weights = trained(run.model)
        own = {name: weight.detach().clone() for name, weight in weights.items()}
        copy(self.average, weights)
        try:
            yield
        finally:
            copy(own, weights)

    def state(self) -> dict[str, Any]:
        """The number of updates; the averages are in a separate file."""
        return {"updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.updates = state["updates"]

    def weights(self) -> dict[str, Tensor]:
        """The averages, float32."""
        return self.average

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the averages of a checkpoint."""
        from lavis_lite import distributed

        own = self.average or tensors
        self.average = {name: distributed.part_like(tensor.float().to(own[name].device), own[name])
                        for name, tensor in tensors.items() if name in own}


def trained(model: BaseModel) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Overwrite the values of parameters."""
    import torch

    with torch.no_grad():
        for name, weight in target.items():
            weight.copy_(source[name])
