"""Where a frozen language model lies and what it remembers: its blocks, several devices, recomputation."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lavis_lite.errors import ConfigError
from lavis_lite.models.base import blocks_of


def recompute_blocks(model: nn.Module) -> None:
    """Keep what enters a block and compute the block again in the backward pass; gradients are the same.

    transformers' own switch works in training mode only, which a frozen model is never in. Without gradients, and while
    a cache is filled, blocks run as they are.
    """
    for block in blocks_of(model):
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Any, *args: Any, **given: Any) -> Any:
    if not torch.is_grad_enabled() or given.get("use_cache"):
        return forward(*args, **given)
    return checkpoint(forward, *args, use_reentrant=False, **given)


def spread(model: Any, device_map: Any) -> Any:
    """A model over several devices, by accelerate: hooks move what flows from block to block.

    Args:
        model: with its weights, on the CPU.
        device_map: "auto" (as evenly as fits the GPUs, then the CPU), or {module name: device} for all modules.

    Raises:
        ConfigError: the map leaves a module out, or names no device.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    together = list(getattr(model, "_no_split_modules", None) or ())
    if device_map == "auto":
        memory = get_balanced_memory(model, no_split_module_classes=together)
        device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=together)
    if "disk" in device_map.values():
        raise ConfigError('model.llm_device_map: does not fit the GPUs and the memory here ("disk" would be needed); '
                          "take a smaller model, or model.llm_quantization.")
    try:
        return dispatch_model(model, device_map=dict(device_map), force_hooks=True)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"model.llm_device_map: {str(error).splitlines()[0]}") from error


def home(model: Any) -> torch.device:
    """Device of the word embeddings: where a soft prompt enters and results come back to."""
    words = model.get_input_embeddings()
    # where accelerate keeps weights elsewhere, its hook knows where they are used
    device = getattr(getattr(words, "_hf_hook", None), "execution_device", None)
    return words.weight.device if device is None else torch.device(device)
