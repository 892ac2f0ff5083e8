"""The keys and values that decoding carries from step to step, over transformers' caches.

Memory for all new tokens is allocated once and written in place. The beams of a sample share it where the model takes
masks as they are. A layer without plain full attention (a sliding window, a recurrent state) stays as transformers made
it and moves as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from lavis_lite.models.plain_text import Side


class RowCache:
    """The cache of a batch of which rows are repeated, reordered, dropped and joined by others.

    A row holds one text, or the K beams of a sample: these write their tokens side by side, and a mask says which of
    them each has come from. Beams that change places then move nothing but the mask.

    Args:
        cache: of transformers, after the beginnings of M samples; it stays as it is.
        mask: bool[M,S], which of its columns a row sees.
        room: how many more tokens a text will have.
        fixed: keys, values and mask have their final shape from the start, see `FixedLayer`.
        beams: texts that a row will hold, after the first `keep`.
    """

    def __init__(self, cache: Any, mask: Tensor, room: int, fixed: bool = False, beams: int = 1) -> None:
        self.cache, self.room, self.fixed, self.end = _copy(cache), room * beams, fixed, mask.shape[1]
        self.most, self.beams = beams, 1
        self.mask = F.pad(mask, (0, self.room))[:, None]
        kind = FixedLayer if fixed else PreallocatedLayer
        own = _parts(self.cache)[0]  # what attends to an encoder gets no new tokens
        own.layers = [kind(layer.keys, layer.values, self.room) if _is_full(layer) else layer for layer in own.layers]

    def advance(self) -> Tensor:
        """Make place for one more token of each text: bool[M,K,S+K], or all columns, what each text then sees."""
        start, self.end = self.end, self.end + self.beams
        self.mask[:, :, start:self.end] = torch.eye(self.beams, dtype=torch.bool, device=self.mask.device)
        return self.mask if self.fixed else self.mask[:, :, :self.end]

    def keep(self, texts: Tensor, in_sample: bool = False) -> Tensor:
        """Keep the texts int64[M'*K], with repetition; those of a row are neighbours.

        Args:
            texts: their numbers.
            in_sample: each replaces one of its own sample.

        Returns:
            The rows that they were in, int64[M'].
        """
        grouped = texts.view(len(texts) // self.most, self.most)  # there may be none
        rows = grouped[:, 0] // self.beams
        parts = _parts(self.cache)
        if in_sample:  # what an encoder gave is the same for all of them
            parts = parts[:1] if self.most == 1 else []
        for part in parts:
            part.reorder_cache(rows)
        self.mask, self.beams = self.mask[rows[:, None], grouped % self.beams], self.most
        return rows

    def join(self, other: RowCache, width: int) -> None:
        """Put the rows of another one behind, the newest tokens of all side by side.

        Args:
            other: of the same model; all its layers have full attention.
            width: columns that stay, the newest ones.
        """
        (own, *encoder), (theirs, *their_encoder) = _parts(self.cache), _parts(other.cache)
        for layer, new in zip(own.layers, theirs.layers, strict=True):
            both = zip(layer.parts, new.parts, strict=True)
            layer.start([stacked([one[:, :, :self.end], two[:, :, :other.end]], "left", width) for one, two in both],
                        self.room)
        for part, more in zip(encoder, their_encoder, strict=True):
            for layer, new in zip(part.layers, more.layers, strict=True):
                layer.keys, layer.values = (stacked([getattr(one, name) for one in (layer, new)], "right")
                                            for name in ("keys", "values"))
        masks = stacked([self.mask[..., :self.end], other.mask[..., :other.end]], "left", width, axis=-1)
        self.mask, self.end = F.pad(masks, (0, self.room)), width


def stacked(parts: Sequence[Tensor], side: Side, width: int | None = None, axis: int = -2) -> Tensor:
    """Tensors one behind the other, of which an axis is filled with zeros, or cut, on one side to the same width."""
    width = max(part.shape[axis] for part in parts) if width is None else width
    fitted = []
    for part in parts:
        lacking = width - part.shape[axis]
        fill = (lacking, 0) if side == "left" else (0, lacking)
        fitted.append(F.pad(part.transpose(axis, -1), fill).transpose(axis, -1))
    return torch.cat(fitted)


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
    """Keys and values with room behind them.

    Args:
        keys: float[M,H,S,d].
        values: float[M,H,S,d'].
        room: how many more columns will be written.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.start([keys, values], room)

    def start(self, parts: Sequence[Tensor], room: int) -> None:
        """Begin with keys and values."""
        self.end = parts[0].shape[2]
        self.parts = [F.pad(part, (0, 0, 0, room)) for part in parts]
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

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values = self.parts[0][:, :, :self.end], self.parts[1][:, :, :self.end]
        return keys, values


class FixedLayer(PreallocatedLayer):
    """Keys and values of the final shape; what is not written yet is zero, and a mask must hide it.

    No shape and no number of the host changes from token to token, so that a compiled step or a CUDA graph takes them
    all.
    """

    def start(self, parts: Sequence[Tensor], room: int) -> None:
        """See `PreallocatedLayer.start`."""
        self.at = torch.full((1,), parts[0].shape[2], device=parts[0].device)
        super().start(parts, room)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write float[M,H,N,d] and float[M,H,N,d'] in place; everything, with room behind."""
        count = key_states.shape[2]
        columns = self.at + torch.arange(count, device=self.at.device)
        for part, new in zip(self.parts, (key_states, value_states), strict=True):
            part.index_copy_(2, columns, new)
        self.at += count
        return self._show()

    def get_seq_length(self) -> Any:
        """Columns so far, as int64[] on the device."""
        return self.at[0]

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values = self.parts
        return keys, values


def _is_full(layer: Any) -> bool:
    """Whether a layer of transformers holds the keys and values of all tokens, and nothing else."""
    return type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None


def is_plain(config: Any) -> bool:
    """Whether every layer of a model with this configuration holds, and looks at, the keys and values of all tokens."""
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo keeps all, but looks through a window
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def has_whole_masks(network: Any) -> bool:
    """Whether a model of transformers takes masks bool[B,1,N,S] as they are: then it looks at none of their values."""
    return (network.config._attn_implementation == "sdpa" and bool(getattr(network, "_can_compile_fullgraph", False))
            and not getattr(network.config, "alibi", False))
