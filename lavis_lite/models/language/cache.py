"""The keys and values that decoding carries from step to step, over transformers' caches.

Room for all new tokens is taken once and written in place. Rows that continue one sample (beams, draws) share its
beginning: when they change places among themselves, only what was written after it moves. A layer that is no plain
full attention (a sliding window, a recurrent state) stays as transformers made it and moves as a whole.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class RowCache:
    """The cache of a batch whose rows are multiplied, change places and leave.

    Args:
        cache: of transformers, after the beginnings of M samples; it stays as it is.
        samples: int64[M], a number for each.
        room: how many more tokens a row will have.
    """

    def __init__(self, cache: Any, samples: Tensor, room: int) -> None:
        from lavis_lite.models.language.preallocated_layer import with_room

        self.cache, self.samples = _copy(cache), samples
        own = _parts(self.cache)[0]  # what attends to an encoder gets no new tokens
        own.layers = with_room(own.layers, room)

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
    if hasattr(cache, "self_attention_cache"):
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
