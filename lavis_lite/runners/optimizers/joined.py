"""Optimizers that others do the work for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class JoinedOptimizer(torch.optim.Optimizer):
    """One optimizer over the groups of several: they share its groups, learning rates and state.

    Args:
        parts: each with its own parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)
        start = 0
        for part in self.parts:  # a learning rate set here is a learning rate set there
            end = start + len(part.param_groups)
            part.param_groups[:] = self.param_groups[start:end]
            part.state = self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self.parts:
            part.step(closure)
