"""Captions of four pictures in TensorBoard (tab Text), as a hook outside the package."""

from typing import Any

import torch

from lavis_lite.registry import registry
from lavis_lite.runners.hooks import Hook, RunContext


@registry.register_hook("captions")
class Captions(Hook):
    """What the model writes about the first pictures of the last split, every `every` steps."""

    every = 100

    def on_start(self, run: RunContext) -> None:
        rows = [*next(iter(run.datasets.values())).values()][-1]  # the run's last split
        self.images = torch.stack([rows[index]["image"] for index in range(4)]).to(run.device)

    def after_step(self, run: RunContext, result: Any) -> None:
        captions = run.model.eval().generate({"image": self.images})
        run.model.train()
        run.tracker.text(run.step, "captions", "\n".join(captions))
