"""The layers of a Q-Former: shared self-attention, cross-attention of the queries, two feed-forwards (BERT, post-LN).

Axes: B batch, Q queries, S tokens of the sequence, T tokens looked at, P image patches, D width, Dv image feature
width, H heads, C number of cross-attention layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import ConfigError

if TYPE_CHECKING:
    from lavis_lite.models.qformer.packing import Packing


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are BERT-base's, as in BLIP-2."""

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30523
    max_positions: int = 512
    num_queries: int = 32
    """number of query tokens; they live in the model, this is for the record"""
    cross_attention_freq: int = 2
    """cross-attention in layers 0, freq, 2 * freq ..."""
    vision_width: int = 1408
    """Dv, width of the image features"""
    dropout: float = 0.1
    attention_dropout: float | None = None
    """of attention weights; None: as `dropout`"""
    with_text: bool = True
    """False drops the text half: embeddings of words and positions, text feed-forwards, language-model head"""
    with_lm_head: bool = True
    padded_features: bool = False
    """the image features of a batch may end in rows of NaN, which are not looked at"""
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"model.qformer_hidden_size: {self.hidden_size} is not a multiple of "
                              f"qformer_heads: {self.num_heads}.")


@dataclass(frozen=True)
class ImageKV:
    """Keys and values of the image for all cross-attention layers, computed once and shared.

    parts: 2C tensors float[B, P, H, D/H], in order key_0, value_0, key_1, ...
    groups: how many consecutive batches of queries look at these images: row g*B + b of the hidden states looks at
        image b, for g < groups.
    mask: bool[B, P], the features that may be seen; None: all.
    """

    parts: tuple[Tensor, ...]
    groups: int = 1
    mask: Tensor | None = None

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the index-th cross-attention layer, float[B, P, H, D/H] each."""
        return self.parts[2 * index], self.parts[2 * index + 1]

    def select(self, rows: Tensor) -> ImageKV:
        """The images `rows` (int64[M]) of the batch, with repetition allowed."""
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        return ImageKV(tuple(part.index_select(0, rows) for part in self.parts), mask=mask)

    def repeated(self, groups: int) -> ImageKV:
        """The same images, looked at by `groups` batches of queries; nothing is copied."""
        return replace(self, groups=groups)

    def only(self, index: int) -> ImageKV:
        """Those of the index-th cross-attention layer alone."""
        return replace(self, parts=self.layer(index))

    @property
    def rows(self) -> int:
        """Number of hidden-state rows that look at these images."""
        return self.groups * self.parts[0].shape[0]


class Attention(nn.Module):
    """What self- and cross-attention share: projections, output, residual and norm after it (post-LN)."""

    def __init__(self, cfg: QFormerConfig, key_width: int) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.num_heads = cfg.num_heads
        self.attention_dropout = cfg.dropout if cfg.attention_dropout is None else cfg.attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)

    def split_heads(self, tensor: Tensor) -> Tensor:
        """float[B,S,D] -> float[B,S,H,D/H]."""
        return tensor.unflatten(-1, (self.num_heads, -1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """float[B,H,S,D/H], float[B,H,T,D/H] twice -> float[B,S,D]."""
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)

    def finish(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """Output projection, residual, norm: float[B,S,D] twice -> float[B,S,D]."""
        return self.norm(self.dropout(self.output(mixed)) + residual)


class SelfAttention(Attention):
    """Self-attention over queries and text together."""

    def packed(self, hidden: Tensor, packing: Packing) -> Tensor:
        """The same over a packed batch, float[R,D] -> float[R',D] of the tokens that `packing` keeps."""
        key, value = self.split_heads(self.key(hidden)), self.split_heads(self.value(hidden))
        if packing.kept is not None:
            hidden = hidden.index_select(0, packing.kept)
        mixed = packing.attend(self.attend, self.split_heads(self.query(hidden)), key, value)
        return self.finish(mixed, hidden)

    def forward(self, hidden: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None,
                rows: Sequence[slice] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend.

        Args:
            hidden: float[B,S,D].
            mask: bool[B,1,S,T] or None; T counts past tokens too.
            past: keys and values of earlier tokens, put in front.
            rows: only these stretches of S are computed (R rows in all); None: all.

        Returns:
            float[B,R,D], and keys and values float[B,H,T,D/H] with the past.
        """
        key = self.split_heads(self.key(hidden)).transpose(1, 2)
        value = self.split_heads(self.value(hidden)).transpose(1, 2)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        if rows is not None:
            hidden = _take(hidden, rows, 1)
            mask = None if mask is None else _take(mask, rows, 2)
        query = self.split_heads(self.query(hidden)).transpose(1, 2)
        return self.finish(self.attend(query, key, value, mask), hidden), (key, value)


class CrossAttention(Attention):
    """The queries' look at the image; keys and values come ready-made (`QFormer.precompute_kv`)."""

    looks_at_features = True

    def forward(self, hidden: Tensor, images: Sequence[ImageKV], index: int) -> Tensor:
        """float[N,Q,D] -> float[N,Q,D]; the images serve the N rows in order, `images[i].rows` rows each."""
        query = self.split_heads(self.query(hidden))
        stretches = query.split([image.rows for image in images])
        mixed = [self._look(rows, image, index) for rows, image in zip(stretches, images, strict=True)]
        return self.finish(mixed[0] if len(mixed) == 1 else torch.cat(mixed), hidden)

    def _look(self, query: Tensor, image: ImageKV, index: int) -> Tensor:
        """Groups that share images are laid side by side along the query axis: [G*B,Q,H,d] -> [B,H,G*Q,d]."""
        key, value = (tensor.transpose(1, 2) for tensor in image.layer(index))
        groups, count = image.groups, query.shape[1]
        mask = None if image.mask is None else image.mask[:, None, None]
        if groups == 1:
            return self.attend(query.transpose(1, 2), key, value, mask)
        stacked = query.unflatten(0, (groups, -1)).permute(1, 3, 0, 2, 4).flatten(2, 3)
        mixed = self.attend(stacked, key, value, mask)
        return mixed.unflatten(1, (groups, count)).transpose(0, 1).flatten(0, 1)


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between, residual, norm."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(cfg.hidden_size, cfg.intermediate_size)
        self.down = nn.Linear(cfg.intermediate_size, cfg.hidden_size)
        self.norm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """float[B,S,D] -> float[B,S,D]."""
        return self.norm(self.dropout(self.down(F.gelu(self.up(hidden)))) + hidden)


class Layer(nn.Module):
    """One block: shared self-attention, cross-attention of the queries (some layers), two feed-forwards."""

    def __init__(self, cfg: QFormerConfig, with_cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = SelfAttention(cfg, cfg.hidden_size)
        self.cross_attention = CrossAttention(cfg, cfg.vision_width) if with_cross_attention else None
        self.query_ffn = FeedForward(cfg)
        self.text_ffn = FeedForward(cfg) if cfg.with_text else None

    def forward(self, hidden: Tensor, num_query: int, mask: Tensor | None, images: Sequence[ImageKV],
                past: tuple[Tensor, Tensor] | None,
                rows: Sequence[slice] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The whole block: float[N,S,D] -> float[N,R,D], and the keys and values of its self-attention.

        `images` have the keys and values of this layer only; the other arguments are those of `SelfAttention` and
        `after_attention`.
        """
        hidden, key_value = self.self_attention(hidden, mask, past, rows)
        return self.after_attention(hidden, num_query, images, 0), key_value

    def after_attention(self, hidden: Tensor, num_query: int, images: Sequence[ImageKV], index: int) -> Tensor:
        """Cross-attention and feed-forwards: float[B,S,D] -> float[B,S,D]; the first num_query rows are queries."""
        query, text = hidden.split([num_query, hidden.shape[1] - num_query], 1)
        parts = []
        if num_query:
            parts.append(self.after_attention_of_queries(query, images, index))
        if text.shape[1]:
            assert self.text_ffn is not None, "this Q-Former was built without its text half"
            parts.append(self.text_ffn(text))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def after_attention_of_queries(self, query: Tensor, images: Sequence[ImageKV], index: int) -> Tensor:
        """Cross-attention and the queries' feed-forward: float[N,Q,D] -> float[N,Q,D]."""
        if self.cross_attention is not None and images:
            query = self.cross_attention(query, images, index)
        return self.query_ffn(query)

    def packed(self, hidden: Tensor, shape: tuple[int, int], packing: Packing, images: Sequence[ImageKV],
               index: int) -> Tensor:
        """The whole block over a packed batch, N*Q queries first; shape (N,Q): float[R,D] -> float[R',D]."""
        assert self.text_ffn is not None, "this Q-Former was built without its text half"
        hidden = self.self_attention.packed(hidden, packing)
        number = shape[0] * shape[1]
        query = self.after_attention_of_queries(hidden[:number].unflatten(0, shape), images, index).flatten(0, 1)
        return query if len(hidden) == number else torch.cat([query, self.text_ffn(hidden[number:])])


def _take(tensor: Tensor, rows: Sequence[slice], axis: int) -> Tensor:
    """The stretches `rows` of an axis, joined; a view when there is one stretch."""
    parts = [tensor.narrow(axis, row.start, row.stop - row.start) for row in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
