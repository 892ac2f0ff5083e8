"""The keys and values that decoding carries from step to step, over transformers' caches.

Memory for all new tokens is allocated once and written in place. Rows that continue one sample (beams, draws) share its
beginning: when they are reordered among themselves, only what was written after it moves. A layer without plain full
attention (a sliding window, a recurrent state) stays as transformers made it and moves as a whole.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RowCache:
    """The cache of a batch of which rows are repeated, reordered and dropped.

    Args:
        cache: of transformers, after the beginnings of M samples; it stays as it is.
        samples: int64[M], a number for each.
        room: how many more tokens a row will have.
    """

    def __init__(self, cache: Any, samples: Tensor, room: int) -> None:
        self.cache, self.samples = _copy(cache), samples
        own = _parts(self.cache)[0]  # what attends to an encoder gets no new tokens
        own.layers = preallocated(own.layers, room)

    def select(self, rows: Tensor) -> bool:
        """Keep the rows int64[M'], with repetition; whether there is a row whose beginning is now another one."""
        samples = self.samples.index_select(0, rows)
        moved, self.samples = not torch.equal(samples, self.samples), samples
        own, *encoder = _parts(self.cache)
        if moved:
            for part in (own, *encoder):
                part.reorder_cache(rows)
            return True
        for layer in own.layers:
            getattr(layer, "permute", layer.reorder_cache)(rows)
        return False


def select_rows(cache: Any, rows: Tensor) -> Any:
    """A cache of transformers with the batch rows `rows` (with repetition); the given one stays as it is."""
    chosen = _copy(cache)
    for part in _parts(chosen):
        part.reorder_cache(rows)
    return chosen


def _parts(cache: Any) -> list[Any]:
    """The cache itself; of an encoder-decoder, its tokens' own and that of what the encoder gave."""
    if hasattr(cache, "self_attention_cache"):
        return [cache.self_attention_cache, cache.cross_attention_cache]
    return [cache]


def _copy(cache: Any) -> Any:
    """A cache with layers of its own, which still hold the same tensors."""
    chosen = copy.copy(cache)
    if len(_parts(cache)) > 1:
        chosen.self_attention_cache, chosen.cross_attention_cache = map(_copy, _parts(cache))
        chosen.is_updated = dict(cache.is_updated)
    else:
        chosen.layers = [_copy_layer(layer) for layer in cache.layers]
    return chosen


def _copy_layer(layer: Any) -> Any:
    """Recurrent layers keep their states in dicts, into which transformers writes: these are copied, too."""
    chosen = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(chosen, name, dict(value))
    return chosen


class PreallocatedLayer(DynamicLayer):
    """Keys and values with room behind them; the tokens it starts from are common to the rows of a sample.

    Args:
        keys: float[M,H,S,d].
        values: float[M,H,S,d'].
        room: how many more tokens will be written.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.common = self.end = keys.shape[2]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.parts = [part.new_empty(*part.shape[:2], self.common + room, part.shape[3]) for part in (keys, values)]
        for part, old in zip(self.parts, (keys, values), strict=True):
            part[:, :, :self.end] = old
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write float[M,H,N,d] and float[M,H,N,d'] behind what is there; everything so far."""
        start, self.end = self.end, self.end + key_states.shape[2]
        for part, new in zip(self.parts, (key_states, value_states), strict=True):
            part[:, :, start:self.end] = new
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, int64[M'], with repetition."""
        rows = beam_idx.to(self.device)
        self.parts = [part.index_select(0, rows) for part in self.parts]
        self._show()

    def permute(self, rows: Tensor) -> None:
        """As `reorder_cache` with int64[M] where every row takes one of its own sample's: the common part may stay."""
        rows = rows.to(self.device)
        for part in self.parts:
            written = part[:, :, self.common:self.end]
            written.copy_(written.index_select(0, rows))

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (part[:, :, :self.end] for part in self.parts)
        self.keys, self.values = keys, values
        return keys, values


def preallocated(layers: list[Any], room: int) -> list[Any]:
    """The layers; those that hold the keys and values of all tokens, and nothing else, as copies with room."""
    return [PreallocatedLayer(layer.keys, layer.values, room)
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None else layer
            for layer in layers]


def is_plain(config: Any) -> bool:
    """Whether every layer of a model with this configuration holds, and looks at, the keys and values of all tokens."""
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo keeps all, but looks through a window
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
