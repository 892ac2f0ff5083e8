"""Muon: momentum whose matrices are made orthogonal before they are added (Jordan et al., 2024), in fp32.

`torch.optim.Muon` computes in bfloat16, which is slow on CPUs without such instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrices, singular values between 0.7 and 1.2: float[N,A,B] -> float[N,A,B]."""
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.transpose(1, 2) if tall else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = found @ found.transpose(1, 2)
        found = first * found + (second * gram + third * gram @ gram) @ found
    return found.transpose(1, 2) if tall else found


class Muon(torch.optim.Optimizer):
    """Nesterov momentum made orthogonal; an update is as long as AdamW's at the same learning rate.

    Args:
        matrices: parameters float[A,B]; those of one shape are updated together.
        lr: learning rate.
        momentum: of the mean of gradients.
        weight_decay: decoupled.
    """

    def __init__(self, matrices: Sequence[Tensor], lr: float, momentum: float = 0.95,
                 weight_decay: float = 0.0) -> None:
        shapes = sorted({matrix.shape for matrix in matrices})
        super().__init__([{"params": [one for one in matrices if one.shape == shape]} for shape in shapes],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of all matrices from their gradients."""
        for group in self.param_groups:
            matrices, keep = group["params"], group["momentum"]
            gradients = torch.stack([one.grad for one in matrices])
            mean = self.state[matrices[0]].setdefault("mean", torch.zeros_like(gradients))
            mean.lerp_(gradients, 1 - keep)
            updates = orthogonal(gradients.lerp(mean, keep))
            length = 0.2 * max(updates.shape[1:]) ** 0.5
            for one, update in zip(matrices, updates, strict=True):
                one.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * length)
