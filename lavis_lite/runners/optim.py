"""AdamW over parameter groups: which parameters decay, and whose learning rate is scaled.

LAVIS' rule: everything decays except one-dimensional parameters and biases. So the query tokens (3-D) and the ITC
temperature (0-D) do decay. Layer-wise rates reach the optimizer through each group's `lr_scale`, which `set_lr`
multiplies at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

Group = dict[str, Any]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to 1-D parameters (norms, scales) and not to anything called `bias`."""
    return not (parameter.ndim == 1 or name.endswith(".bias"))


def parameter_groups(model: BaseModel, weight_decay: float, layer_decay: float = 1.0) -> list[Group]:
    """Trainable parameters grouped by (weight decay, learning-rate scale), in order of first appearance.

    Returns:
        Groups {"params", "names", "weight_decay", "lr_scale"}; decaying ones first.

    Raises:
        ConfigError: nothing is trainable.
    """
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if decays(name, parameter) else 0.0
        scale = 1.0 if layer_decay == 1.0 else model.layer_scale(name, layer_decay)
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay,
                                                   "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("the model has no trainable parameter: check model.freeze_vit and the other freeze switches.")
    return sorted(groups.values(), key=lambda group: group["weight_decay"] == 0.0)


def build_optimizer(model: BaseModel, cfg: RunConfig) -> torch.optim.AdamW:
    """AdamW as the `run:` section asks; fused, since all parameters are floating point."""
    groups = parameter_groups(model, cfg.weight_decay, cfg.lr_layer_decay)
    return torch.optim.AdamW(groups, lr=cfg.init_lr, betas=(cfg.beta1, cfg.beta2), fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the base rate times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `optimizer.found_inf` = 1 makes its step leave weights and moments as they are, on the device.

    The fused kernels of Adam and AdamW do. Other fused ones are not trusted: SGD's leaves new momentum buffers
    uninitialised.
    """
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and all(
        group.get("fused") for group in optimizer.param_groups)


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters the optimizer holds, in group order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def trained_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Their names, in the same order."""
    return [name for group in optimizer.param_groups for name in group["names"]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's memory by parameter name: {"exp_avg", "exp_avg_sq", "step"} each, for AdamW.

    By name and without the groups' settings, so that a changed weight decay or freezing is what the YAML says, and
    no state ever lands on another parameter.
    """
    return {name: dict(optimizer.state[parameter])
            for name, parameter in zip(trained_names(optimizer), trained_parameters(optimizer), strict=True)
            if parameter in optimizer.state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        CheckpointError: the state belongs to other parameters than those that train now.
    """
    names, parameters = trained_names(optimizer), trained_parameters(optimizer)
    if state and set(state) != set(names):
        lost, new = sorted(set(state) - set(names)), sorted(set(names) - set(state))
        raise CheckpointError(
            f"the optimizer state is of other parameters: {len(lost)} of it do not train now {lost[:5]}, {len(new)} "
            f"that train now are not in it {new[:5]}. Was a part frozen or unfrozen since? Start a new run with "
            "model.pretrained set to this checkpoint instead of resuming it.")
    # torch keeps the number of steps on the host, unless an optimizer's kernels want it on the device
    on_host = not any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for name, parameter in zip(names, parameters, strict=True):
        if name in state:
            optimizer.state[parameter] = {
                key: _copy(value, torch.device("cpu") if key == "step" and on_host else parameter.device)
                for key, value in state[name].items()}


def _copy(value: Any, device: torch.device) -> Any:
    return value.to(device).clone() if isinstance(value, Tensor) else value
