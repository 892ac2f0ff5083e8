"""A layer of transformers' cache that is written in place; apart, because it needs transformers when it is imported.

Axes: M rows, H heads, S tokens, N new tokens, d width of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
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


def with_room(layers: list[Any], room: int) -> list[Any]:
    """The layers; those that hold the keys and values of all tokens, and nothing else, as copies with room."""
    return [RoomyLayer(layer.keys, layer.values, room)
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None else layer
            for layer in layers]


def is_plain(config: Any) -> bool:
    """Whether every layer of a model with this configuration holds, and looks at, the keys and values of all tokens."""
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo keeps all, but looks through a window
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
