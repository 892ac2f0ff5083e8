"""The weights of one transformers model into the modules of another of the same class, which stay where they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lavis_lite.errors import CheckpointError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
_UNFROZEN = "was_unfrozen"
SHOWN = 3


def transplant(found: nn.Module, plan: nn.Module) -> None:
    """Give every module of `plan` the parameters and buffers that its counterpart in `found` has.

    Modules of `plan` stay the objects that they are, with their hooks and whatever was set on them; parameters keep
    their `requires_grad`. A module of another class in `found` (a quantised layer) takes the place of its counterpart
    and its hooks. A layer with an adapter gets its weights behind the adapter.

    Raises:
        CheckpointError: `plan` has tensors without values that `found` does not bring.
    """
    replaced: list[str] = []
    for path, module in found.named_modules():
        if any(path.startswith(f"{done}.") for done in replaced):
            continue
        target = plan.get_submodule(path)
        if _is_adapted(target) and not _is_quantised(module):
            target = target.base_layer  # type: ignore[assignment]
        if path and type(target) is not type(module):
            _replace(plan, path, module)
            replaced.append(path)
        else:
            _fill(module, target)
    for name, value in vars(found).items():  # such as what transformers knows of a quantisation
        vars(plan).setdefault(name, value)
    plan.generation_config = found.generation_config


def check_no_meta(model: nn.Module) -> None:
    """Refuse a model with parameters that nobody gave values.

    Raises:
        CheckpointError: naming some of them.
    """
    lost = [name for name, value in model.named_parameters() if value.is_meta]
    if lost:
        raise CheckpointError(
            f"{len(lost)} parameters of the language model have no values, as its folder does not have them: "
            f"{', '.join(lost[:SHOWN])}. Parts that a model adds to its language model belong into its method "
            "on_weights_loaded.")


def _is_adapted(module: nn.Module) -> bool:
    """Whether peft put an adapter around a layer."""
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes")


def _fill(module: nn.Module, target: nn.Module) -> None:
    for name, value in module._parameters.items():
        old = target._parameters.get(name)
        if value is not None:  # a tied one is met under each of its names, and stays unfrozen once it is
            trains = old is not None and old.requires_grad
            value.requires_grad_(trains or getattr(value, _UNFROZEN, False))
            setattr(value, _UNFROZEN, value.requires_grad)
        target._parameters[name] = value
    target._buffers.update(module._buffers)
    for name, value in vars(module).items():  # tensors that are plain attributes: angles of rotary positions
        held: Any = vars(target).get(name)
        if isinstance(held, Tensor) and held.is_meta and isinstance(value, Tensor):
            setattr(target, name, value)


def _replace(plan: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module of another class in its counterpart's place."""
    parent, _, leaf = path.rpartition(".")
    old = plan.get_submodule(path)
    for hooks in _HOOKS:
        getattr(module, hooks).update(getattr(old, hooks, {}))
    for value in module.parameters():
        value.requires_grad_(False)
    setattr(plan.get_submodule(parent), leaf, module)
