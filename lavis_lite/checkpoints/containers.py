"""Which tensors of a file are the model, and what their names are without the wrappers that a training put around them.

Trainings save a state dict inside other dictionaries ({"state_dict": ...}, {"module": ...}), several state dicts in one
file (the model and its moving average), and names with pieces that DDP, FSDP, torch.compile or Lightning added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import CheckpointError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""keys under which trainings keep the model, the most telling first"""
AVERAGES = ("model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict", "ema",
            "averaged_model", "params_ema", "ema_weights")
"""keys under which they keep a moving average of its weights"""
AVERAGE_COUNT = "n_averaged"
"""what torch.optim.swa_utils.AveragedModel keeps beside the weights"""
OPTIMIZERS = ("optim", "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "lr_scheduler",
              "lr_schedulers", "scheduler", "scaler", "callbacks", "hyper_parameters", "loops", "rng_state",
              "rng_states")
"""keys of what is not the model although it may hold tensors"""
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
            "_ddp_module", "_wrapped_module")
"""pieces of names that belong to a wrapper, not to a part of the model: torch.compile, DDP and DeepSpeed, FSDP,
activation checkpointing, Fabric"""
DEEPEST = 8
"""dictionaries within each other that are looked through"""
SHOWN = 5


@dataclass
class Content:
    """The tensors of a checkpoint and what was done to find them.

    Attributes:
        tensors: by name.
        notes: clauses for the load line, such as "under 'state_dict'".
        foreign: classes of the objects in the file that were not read.
        parts: keys of several dictionaries of tensors, any of which may be the model.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


def find_state_dict(content: Any, where: str, depth: int = 0) -> Content:
    """The model's state dict within what a file holds.

    Raises:
        CheckpointError: there is none, or there are several and it is unclear which is the model's.
    """
    if not isinstance(content, Mapping) or depth > DEEPEST:
        raise CheckpointError(f"{where} holds no state dict: it is an object of {type(content).__name__}, not a "
                              "dictionary of tensors. Save model.state_dict(), not the model itself.")
    inner = {str(key): value for key, value in content.items()
             if isinstance(value, Mapping) and _holds_tensors(value, depth)}
    averages = [key for key in AVERAGES if key in inner]
    chosen = next((key for key in (*CONTAINERS, *averages) if key in inner), None)
    if chosen is None:
        return _plain(content, inner, where, depth)
    found = find_state_dict(inner[chosen], where, depth + 1)
    if chosen in averages:
        found.notes.insert(0, f"the averaged weights under {chosen!r}, the only ones in it")
    elif averages:
        found.notes.insert(0, f"the weights under {chosen!r}, not their average under {averages[0]!r}")
    return found


def _plain(content: Mapping[Any, Any], inner: dict[str, Any], where: str, depth: int) -> Content:
    """A state dict, or several, one for each part of the model, whose names are joined with the parts'."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    parts = {key: value for key, value in inner.items() if key not in OPTIMIZERS}
    if len(parts) == 1 and not any(value.ndim for value in tensors.values()):  # a loss or a counter beside the model
        return find_state_dict(next(iter(parts.values())), where, depth + 1)
    for key, value in parts.items():
        part = find_state_dict(value, where, depth + 1).tensors
        tensors |= {f"{key}.{name}": tensor for name, tensor in part.items()}
    if AVERAGE_COUNT in tensors and all(name.startswith("module.") for name in tensors if name != AVERAGE_COUNT):
        del tensors[AVERAGE_COUNT]
        return Content(tensors, ["averaged weights of torch's AveragedModel"])
    if not tensors:
        held = ", ".join(list(map(str, content))[:SHOWN]) or "nothing"
        hint = " It is a training's state; the weights lie beside it." if set(inner) & set(OPTIMIZERS) else ""
        raise CheckpointError(f"{where} holds no state dict, alone or under 'model' (it holds: {held}).{hint}")
    return Content(tensors, parts=list(parts) if len(parts) > 1 else [])


def _holds_tensors(content: Mapping[Any, Any], depth: int) -> bool:
    return any(isinstance(value, Tensor) or (
        isinstance(value, Mapping) and depth < DEEPEST and _holds_tensors(value, depth + 1))
        for value in content.values())


# names --------------------------------------------------------------------------------------------------------------
def take_off_wrappers(tensors: Mapping[str, Tensor], where: str, own: Iterable[str] = (),
                      known: Callable[[Iterable[str]], bool] | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The same tensors under names without wrappers, and what was taken off, such as ["_orig_mod.", "module."].

    Pieces in `WRAPPERS` go wherever they are in a name, unless the model has such a piece itself. A beginning that all
    names share goes where the names are known without it, and not with it (Lightning's `model.`).

    Args:
        tensors: by the names in the file.
        where: the file, for messages.
        own: names of the model that they are for, where there is one.
        known: whether names are those of a layout that can be read.

    Raises:
        CheckpointError: two different tensors would have one name.
    """
    own = set(own)
    kept = {piece for name in own for piece in name.split(".")}
    pieces = [piece for piece in WRAPPERS if piece not in kept]
    found, taken = _without_pieces(tensors, pieces, where)
    prefix = _foreign_prefix(list(found), lambda names: bool(own.intersection(names)) or bool(known and known(names)))
    if prefix:
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        taken.append(prefix)
    return found, taken


def _without_pieces(tensors: Mapping[str, Tensor], pieces: list[str],
                    where: str) -> tuple[dict[str, Tensor], list[str]]:
    found: dict[str, Tensor] = {}
    taken: dict[str, None] = {}
    before: dict[str, str] = {}
    for name, tensor in tensors.items():
        split = name.split(".")
        short = ".".join(piece for piece in split if piece not in pieces) or name
        taken.update(dict.fromkeys(f"{piece}." for piece in split if piece in pieces))
        if short in found and not _same(found[short], tensor):
            raise CheckpointError(
                f"{where}: {before[short]!r} and {name!r} are two tensors of one name ({short!r}) once the wrappers' "
                f"names ({', '.join(taken)}) are taken off. Keep one of them and save the file again.")
        found[short], before[short] = tensor, name
    return found, list(taken)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and (first.is_meta or torch.equal(first, second))


def _foreign_prefix(names: list[str], known: Callable[[Iterable[str]], bool]) -> str:
    """The shortest beginning, shared by all names, without which they are known; "" where none is."""
    if not names or known(names):
        return ""
    for count in range(1, common_pieces(names) + 1):
        prefix = ".".join(names[0].split(".")[:count]) + "."
        if known([name.removeprefix(prefix) for name in names]):
            return prefix
    return ""


def common_pieces(names: list[str]) -> int:
    """How many pieces all names begin with; the last piece of a name is never one of them."""
    split = [name.split(".")[:-1] for name in names]
    shortest = min(map(len, split), default=0)
    return next((count for count in range(shortest) if len({tuple(one[:count + 1]) for one in split}) > 1), shortest)
