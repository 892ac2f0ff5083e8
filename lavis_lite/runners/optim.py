"""The optimizer of a run: built by name over the model's parameter groups, and its state by parameter name.

Layer-wise rates reach the optimizer through each group's `lr_scale`, which `set_lr` multiplies at every step.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, ConfigError, ContractError, listed
from lavis_lite.models.base import ParameterGroup
from lavis_lite.registry import registry

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel


SHOWN = 5
"""names in a message"""
BY_ELEMENT = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.NAdam, torch.optim.RAdam,
              torch.optim.Adamax, torch.optim.Adagrad, torch.optim.RMSprop)
"""optimizers that treat every number alone, so that a share of a weight trains as the whole does"""


def build_optimizer(model: BaseModel, cfg: RunConfig) -> torch.optim.Optimizer:
    """The optimizer that the `run:` section names, over the model's groups. Adam and AdamW are fused.

    Raises:
        ConfigError: nothing is trainable, or the optimizer refuses its arguments, has no learning rate, or cannot train
            shares of weights.
        ContractError: the model's groups are not its trainable parameters.
        MissingExtraError: the optimizer's package is not installed.
    """
    cls = registry.get_optimizer_class(cfg.optimizer)
    arguments = optimizer_arguments(cls, cfg)
    groups = uniform_groups(complete_groups(model, model.optimizer_groups(cfg), cfg.weight_decay))
    if cls not in BY_ELEMENT and any(distributed.is_sharded(group["params"][0]) for group in groups):
        raise ConfigError(f"run.optimizer: {cfg.optimizer} does not train weights that ranks share (run.fsdp="
                          f"{cfg.fsdp}), because it needs them whole; take adamw, or set run.fsdp=none.")
    try:
        optimizer: torch.optim.Optimizer = cls(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"run.optimizer_args: {cfg.optimizer} refuses its arguments: {error}") from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise ConfigError(f"run.optimizer: {cfg.optimizer} has no learning rate, so run.init_lr and run.lr_sched would "
                          f"have no effect. Let {cls.__name__} take `lr`, pass {{'lr': lr}} to torch's constructor, "
                          "and read group['lr'] in `step`.")
    return optimizer


def optimizer_arguments(cls: type, cfg: RunConfig) -> dict[str, Any]:
    """Learning rate, betas and fused kernels as far as the class has them, and `run.optimizer_args` over these."""
    known = inspect.signature(cls).parameters
    usual: dict[str, Any] = {"lr": cfg.init_lr, "betas": (cfg.beta1, cfg.beta2)}
    if cls in (torch.optim.Adam, torch.optim.AdamW):
        usual["fused"] = not {"foreach", "capturable", "differentiable"} & cfg.optimizer_args.keys()
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.optimizer_args.items()}
    return {**{key: value for key, value in usual.items() if key in known}, **given}


def complete_groups(model: nn.Module, groups: Sequence[ParameterGroup], weight_decay: float) -> list[dict[str, Any]]:
    """The groups with `weight_decay` and `lr_scale` filled in.

    Raises:
        ConfigError: nothing is trainable.
        ContractError: a trainable parameter is in no group or in several, or a frozen one is in one.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ConfigError("the model has no trainable parameter: check model.freeze_vit and the other freeze switches.")
    counts = Counter(name for group in groups for name in group["names"])
    wrong = sorted({name for name in counts if name not in trainable or counts[name] > 1} | trainable - counts.keys())
    if wrong:
        raise ContractError(f"{type(model).__name__}.optimizer_groups must have every trainable parameter exactly "
                            f"once, and no other. Check {listed(wrong)}.")
    return [{"weight_decay": weight_decay, "lr_scale": 1.0, **group} for group in groups]


def uniform_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, each split into its whole parameters and those that ranks share: no kernel takes both at once."""
    found = []
    for group in groups:
        for kind in (False, True):
            rows = [row for row, value in enumerate(group["params"]) if distributed.is_sharded(value) is kind]
            if rows:
                found.append({**group, **{key: [group[key][row] for row in rows] for key in ("params", "names")}})
    return found


def gradient_norm(parameters: Sequence[nn.Parameter], most: float | None) -> Tensor:
    """The norm float[] of all gradients before they are cut to `most`, equal on all ranks. Collective with shards.

    Of parameters that ranks share, each rank adds the squares of its own part.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shared = [distributed.local_part(grad) for grad in grads if distributed.is_sharded(grad)]
    norm = nn.utils.get_total_norm([grad for grad in grads if not distributed.is_sharded(grad)])
    if shared:
        squares = distributed.all_reduce_sum(nn.utils.get_total_norm(shared).square())
        norm = (norm.to(squares).square() + squares).sqrt()
    if most is not None:
        nn.utils.clip_grads_with_norm_([one for one in parameters if not distributed.is_sharded(one)], most, norm)
        if shared:
            torch._foreach_mul_(shared, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def state_per_byte(run: RunConfig) -> tuple[float, float]:
    """Bytes that the run's optimizer keeps per byte of vectors, and of matrices; counted on a small layer.

    Of an optimizer that is neither the package's nor torch's, which may need a real model, nothing is known: 0.
    """
    kept = {value.ndim > 1: sum(item.nbytes for item in state.values() if isinstance(item, Tensor) and item.ndim)
            / value.nbytes for value, state in _state_of_a_layer(run).items()}
    return kept.get(False, 0.0), kept.get(True, 0.0)


def _state_of_a_layer(run: RunConfig) -> dict[Tensor, dict[str, Any]]:
    """What the run's optimizer keeps of a small layer's weight and bias after a step; {}: not known."""
    layer = nn.Linear(128, 128)  # large enough for optimizers that keep small tensors in full precision
    cls = registry.get_optimizer_class(run.optimizer)
    if cls not in BY_ELEMENT and not cls.__module__.startswith("lavis_lite."):
        return {}
    group = {"params": list(layer.parameters()), "names": ["weight", "bias"], "weight_decay": 0.0, "lr_scale": 1.0}
    optimizer = cls([group], **optimizer_arguments(cls, run))
    for value in layer.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    return {value: optimizer.state[value] for value in layer.parameters()}


def check_state(state: dict[str, dict[str, Any]], run: RunConfig) -> None:
    """Refuse an optimizer's state without what the optimizer keeps by its present arguments, such as amsgrad.

    Raises:
        CheckpointError: naming what is not there.
    """
    found = {key for kept in state.values() for key in kept}
    if registry.get_optimizer_class(run.optimizer) not in BY_ELEMENT or not found:
        return  # others keep different things of different weights
    needed = {key for kept in _state_of_a_layer(run).values() for key in kept}
    if lost := sorted(needed - found):
        raise CheckpointError(f"the optimizer state of the checkpoint has no {', '.join(lost)}, which {run.optimizer} "
                              "keeps with this run's run.optimizer_args. Resume with the checkpoint's arguments, or "
                              "start a new run with model.pretrained set to it.")


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
    """All parameters of the optimizer, in group order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def trained_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Their names, in the same order."""
    return [name for group in optimizer.param_groups for name in group["names"]]


def unreached_note(optimizer: torch.optim.Optimizer) -> str:
    """A clause on the trained parameters that the newest backward pass gave no gradient; "" if it reached all."""
    names = [name for name, value in zip(trained_names(optimizer), trained_parameters(optimizer), strict=True)
             if value.grad is None]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} trainable tensors got no gradient: {', '.join(names[:SHOWN])}{more}" if names else ""


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's memory by parameter name, such as {"exp_avg", "exp_avg_sq", "step"} each for AdamW. Collective.

    It is kept by name, so that no state ever reaches another parameter; one that had no gradient yet has none. It has
    none of the groups' settings: after a resume too, the YAML decides about weight decay and freezing.
    """
    return {name: {key: distributed.gather_shards(value) if isinstance(value, Tensor) else value
                   for key, value in optimizer.state.get(parameter, {}).items()}
            for name, parameter in zip(trained_names(optimizer), trained_parameters(optimizer), strict=True)}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        CheckpointError: the state belongs to other parameters than those that train now.
    """
    names = trained_names(optimizer)
    if state and set(state) != set(names):
        lost, new = sorted(set(state) - set(names)), sorted(set(names) - set(state))
        raise CheckpointError(
            f"the optimizer state is of other parameters: {len(lost)} of it do not train now ({listed(lost)}), "
            f"{len(new)} that train now are not in it ({listed(new)}). Was a part frozen or unfrozen since? Start a "
            "new run with model.pretrained set to this checkpoint instead of resuming it.")
    for group in optimizer.param_groups:
        # torch keeps the number of steps on the host, unless an optimizer's kernels want it on the device
        on_host = not (group.get("fused") or group.get("capturable"))
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if state.get(name):
                optimizer.state[parameter] = {
                    key: _copy(value, parameter, torch.device("cpu") if key == "step" and on_host else parameter.device)
                    for key, value in state[name].items()}


def _copy(value: Any, parameter: Tensor, device: torch.device) -> Any:
    return distributed.part_like(value.to(device).clone(), parameter) if isinstance(value, Tensor) else value
