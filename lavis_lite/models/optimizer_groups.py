"""Parameter groups: which parameters decay, and by how much each learning rate is scaled.

LAVIS' rule: everything decays except one-dimensional parameters and biases. So the query tokens (3-D) and the ITC
temperature (0-D) do decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from torch import nn


class ParameterGroup(TypedDict, total=False):
    """One group of a model's trainable parameters; `params` and `names` are required."""

    params: list[nn.Parameter]
    names: list[str]
    """of `params`, in the same order"""
    weight_decay: float
    """absent: `run.weight_decay`"""
    lr_scale: float
    """factor on the scheduled learning rate; absent: 1"""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters (norms, scales) and not to anything called `bias`."""
    return not (parameter.ndim == 1 or name.endswith(".bias"))


def group_parameters(model: nn.Module, weight_decay: float,
                     lr_scale: Callable[[str], float] = lambda name: 1.0) -> list[ParameterGroup]:
    """Trainable parameters grouped by (weight decay, learning-rate scale), in order of first appearance.

    Args:
        model: any module.
        weight_decay: of the parameters that decay.
        lr_scale: name -> factor on the learning rate.

    Returns:
        Complete groups, decaying ones first.
    """
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, scale = weight_decay if decays(name, parameter) else 0.0, lr_scale(name)
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay,
                                                   "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: group["weight_decay"] == 0.0)
