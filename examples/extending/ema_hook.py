"""An average of the trained weights, as a hook outside the package."""

from typing import Any

from torch import Tensor

from lavis_lite.registry import registry
from lavis_lite.runners.hooks import Hook, RunContext


@registry.register_hook("my_ema")
class MyEMA(Hook):
    """average <- decay * average + (1 - decay) * weights; checkpoints keep it."""

    def __init__(self, decay: float = 0.99) -> None:
        self.decay, self.average = decay, dict[str, Tensor]()

    def on_start(self, run: RunContext) -> None:
        self.trained = {name: weight for name, weight in run.model.named_parameters() if weight.requires_grad}
        self.average = {name: self.average.get(name, weight.detach()).to(weight.device, copy=True)
                        for name, weight in self.trained.items()}

    def after_step(self, run: RunContext, result: Any) -> None:
        for name, weight in self.trained.items():
            self.average[name].lerp_(weight.detach(), 1 - self.decay)

    def state(self) -> dict[str, Any]:
        return self.average

    def load_state(self, state: Any) -> None:
        self.average = dict(state)
