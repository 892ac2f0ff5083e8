"""The Q-Former (BLIP-2, section 3.1): one transformer for queries and text, in BERT's shape.

Queries and text share every self-attention; each has its own feed-forward layers; only queries look at the image,
in every `cross_attention_freq`-th layer. Stage 1, stage 2 (text half dropped) and InstructBLIP (instruction in) all
use this class.

Axes: B batch, Q queries, L text tokens, S = Q + L, P image patches, D width, Dv image feature width, H heads,
C number of cross-attention layers.

A mask says who may attend to whom (section 3.2, figure 2): bool[B, 1, S, S], True if the row's token may see the
column's. The sequence is [queries | text]. Two queries q and three text tokens t, x: visible:

    uni_modal (ITC)      multi_modal_causal (ITG)    bidirectional (ITM)
        q q t t t            q q t t t                   q q t t t
      q x x . . .          q x x . . .                 q x x x x x
      q x x . . .          q x x . . .                 q x x x x x
      t . . x x x          t x x x . .                 t x x x x x
      t . . x x x          t x x x x .                 t x x x x x
      t . . x x x          t x x x x x                 t x x x x x

Columns of padding are never seen. None means "everything is visible", which lets SDPA take its fastest path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavis_lite.models.qformer.layers import CrossAttention, ImageKV, Layer, QFormerConfig
from lavis_lite.products import linear, replace_linears

if TYPE_CHECKING:
    from lavis_lite.models.qformer.packing import PackedText

Pattern = Literal["uni_modal", "multi_modal_causal", "bidirectional"]
"""uni_modal: queries and text do not see each other. multi_modal_causal: queries see queries, text sees all queries and
the text before it. bidirectional: all see all; also for the instructions of InstructBLIP."""


def attention_mask(pattern: Pattern, num_query: int, text_mask: Tensor | None) -> Tensor | None:
    """The mask of one pattern.

    Args:
        pattern: see `Pattern`.
        num_query: Q, how many query tokens stand in front of the text (may be 0).
        text_mask: bool or int[B, L], true for real tokens; None when there is no text.

    Returns:
        bool[B, 1, Q+L, Q+L], or None when there is no text.
    """
    if text_mask is None:
        return None
    real = text_mask.bool()
    batch, length = real.shape
    total = num_query + length
    is_query = torch.arange(total, device=real.device) < num_query
    seen = torch.cat([real.new_ones(batch, num_query), real], 1)[:, None, None, :]
    if pattern == "uni_modal":
        allowed = ~(is_query[:, None] ^ is_query[None, :])  # torch.compile cannot translate == of bools
    elif pattern == "multi_modal_causal":
        causal = torch.ones(total, total, dtype=torch.bool, device=real.device).tril()
        allowed = torch.where(is_query[:, None], is_query[None, :], causal)
    elif pattern == "bidirectional":
        allowed = torch.ones(total, total, dtype=torch.bool, device=real.device)
    else:
        raise ValueError(f"unknown attention pattern {pattern!r}")
    return allowed & seen


def stage1_mask(num_query: int, text_mask: Tensor) -> Tensor:
    """Mask of the joint pass [queries | text for ITC | text for ITG]: uni-modal and causal pattern side by side.

    The queries see only themselves in both patterns, which is why one pass can serve both. The text for ITG (u) lacks
    its last token, from which nothing is predicted:

          q q t t t u u
        q x x . . . . .
        q x x . . . . .
        t . . x x x . .
        t . . x x x . .
        t . . x x x . .
        u x x . . . x .
        u x x . . . x x

    Args:
        num_query: Q.
        text_mask: bool or int[B, L].

    Returns:
        bool[B, 1, Q+2L-1, Q+2L-1].
    """
    batch, length = text_mask.shape
    uni_modal = attention_mask("uni_modal", num_query, text_mask)
    causal = attention_mask("multi_modal_causal", num_query, text_mask[:, :-1])
    assert uni_modal is not None and causal is not None
    first, total = num_query + length, num_query + 2 * length - 1
    mask = text_mask.new_zeros(batch, 1, total, total, dtype=torch.bool)
    mask[:, :, :first, :first] = uni_modal
    mask[:, :, first:, :num_query] = causal[:, :, num_query:, :num_query]
    mask[:, :, first:, first:] = causal[:, :, num_query:, num_query:]
    return mask


__all__ = ["Cache", "ImageKV", "QFormer", "QFormerConfig", "QFormerOutput"]


@dataclass
class Cache:
    """Keys and values of earlier tokens for causal decoding: per layer (float[B,H,T,D/H], float[B,H,T,D/H])."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    text_length: int = 0
    """text tokens held, that is the position of the next one"""

    def select(self, rows: Tensor) -> Cache:
        """The batch rows `rows` (int64[M]): how beams are reordered and multiplied."""
        kept = [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in self.layers]
        return Cache(kept, self.text_length)


@dataclass
class QFormerOutput:
    """query float[B,Q,D] and text float[B,L,D], each None when there was no such input; cache when asked for."""

    query: Tensor | None
    text: Tensor | None
    cache: Cache | None = None


class Embeddings(nn.Module):
    """Words plus positions; the norm and the dropout also go over the query tokens (LAVIS)."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        if cfg.with_text:
            self.word_embeddings = nn.Embedding(cfg.vocab_size, cfg.hidden_size, padding_idx=0)
            self.position_embeddings = nn.Embedding(cfg.max_positions, cfg.hidden_size)
        self.norm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)

    def words(self, ids: Tensor, positions: Tensor | int = 0) -> Tensor:
        """int64[B,L] -> float[B,L,D], before norm and dropout; positions: int64[L], or that of the first token.

        Also int64[T] with positions int64[T] -> float[T,D].
        """
        if isinstance(positions, int):
            positions = torch.arange(positions, positions + ids.shape[-1], device=ids.device)
        return self.word_embeddings(ids) + self.position_embeddings(positions)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Join along the sequence, norm, dropout: list of float[B,*,D] -> float[B,S,D]."""
        return self.dropout(self.norm(parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)))


class LanguageHead(nn.Module):
    """BERT's masked-word head, used for next words: transform, then the word embeddings as output matrix."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.norm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(cfg.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]: what is multiplied with the word embeddings."""
        return self.norm(F.gelu(self.transform(hidden)))


class QFormer(nn.Module):
    """A Q-Former with or without its text half. Key maps of checkpoints rely on the parameter names."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embeddings = Embeddings(cfg)
        self.layers = nn.ModuleList(
            Layer(cfg, index % cfg.cross_attention_freq == 0) for index in range(cfg.num_layers))
        self.lm_head = LanguageHead(cfg) if cfg.with_text and cfg.with_lm_head else None
        replace_linears(self).apply(self._initialise)
        self.grad_checkpoint = False
        """compute layers again in the backward pass instead of keeping what is inside them"""

    @property
    def blocks(self) -> list[Layer]:
        """The layers, typed."""
        return cast("list[Layer]", list(self.layers))

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.cfg.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, query_embeds: Tensor | None = None, text_ids: Tensor | None = None,
                text_mask: Tensor | None = None, image: Tensor | ImageKV | Sequence[ImageKV] | None = None,
                pattern: Pattern = "bidirectional", cache: Cache | None = None,
                use_cache: bool = False) -> QFormerOutput:
        """Run queries, text, or both.

        Args:
            query_embeds: float[B,Q,D] or None.
            text_ids: int64[B,L] or None.
            text_mask: bool or int[B,L], true for real tokens; None: all real.
            image: features float[B,P,Dv], or their keys and values; None: the queries see no image.
            pattern: who sees whom, see `Pattern`.
            cache: earlier tokens; the new text sees all of them and, among itself, only what came before.
            use_cache: return a cache that includes these tokens.

        Returns:
            Hidden states of queries and text.
        """
        num_query = 0 if query_embeds is None else query_embeds.shape[1]
        hidden = self.embed(query_embeds, text_ids, 0 if cache is None else cache.text_length)
        mask = self._mask(pattern, num_query, text_ids, text_mask, cache)
        held: Cache | None = None
        if use_cache:
            held = Cache([], (cache.text_length if cache else 0) + hidden.shape[1] - num_query)
        hidden = self.run_layers(hidden, num_query, mask, self._images(image), past=cache, keep=held)
        query, text = hidden.split([num_query, hidden.shape[1] - num_query], 1)
        return QFormerOutput(query if num_query else None, text if text_ids is not None else None, held)

    def embed(self, query_embeds: Tensor | None, text_ids: Tensor | None, first_position: int = 0) -> Tensor:
        """Input of the first layer, float[B,Q+L,D]."""
        parts = [] if query_embeds is None else [query_embeds]
        if text_ids is not None:
            parts.append(self.embeddings.words(text_ids, first_position))
        return self.embeddings(parts)

    def run_layers(self, hidden: Tensor, num_query: int, mask: Tensor | None, images: Sequence[ImageKV] = (),
                   past: Cache | None = None, keep: Cache | None = None,
                   return_positions: tuple[int, Sequence[slice]] | None = None) -> Tensor:
        """All layers over an embedded sequence whose first `num_query` tokens are queries.

        Args:
            hidden: float[N,S,D].
            num_query: Q.
            mask: bool[N,1,S,T] or None.
            images: keys and values for the N rows in order.
            past: cache to attend to.
            keep: cache to fill.
            return_positions: (how many of the returned positions are queries, slices of S to return): the last layer
                computes only these. None: all.

        Returns:
            float[N,R,D], R the number of returned positions (S by default).
        """
        last = len(self.layers) - 1
        for index, layer in enumerate(self.blocks):
            rows = None
            if index == last and return_positions is not None:
                num_query, rows = return_positions
            earlier = None if past is None else past.layers[index]
            own = () if layer.cross_attention is None else tuple(
                image.only(index // self.cfg.cross_attention_freq) for image in images)
            given = (hidden, num_query, mask, own, earlier, rows)
            if self.grad_checkpoint and torch.is_grad_enabled() and keep is None:
                hidden, key_value = checkpoint(layer, *given, use_reentrant=False)
            else:
                hidden, key_value = layer(*given)
            if keep is not None:
                keep.layers.append(key_value)
        return hidden

    def run_packed(self, query_tokens: Tensor, ids: Tensor, text: PackedText, images: Sequence[ImageKV]) -> Tensor:
        """All layers over queries and texts without padding between the texts.

        Args:
            query_tokens: float[1,Q,D].
            ids: int64[T], the texts' tokens in the order of `text.rows`.
            text: layout of the batch.
            images: keys and values for the N sequences in order.

        Returns:
            float[R',D]: N*Q queries, then the text tokens that `text.last` keeps.
        """
        shape = (sum(image.rows for image in images), query_tokens.shape[1])
        words = self.embeddings.words(ids, text.positions)
        hidden = self.embeddings([query_tokens.expand(shape[0], -1, -1).flatten(0, 1)[None], words[None]])[0]
        for index, layer in enumerate(self.blocks):
            packing = text.last if index == len(self.layers) - 1 else text.layers
            given = (hidden, shape, packing, images, index // self.cfg.cross_attention_freq)
            if self.grad_checkpoint and torch.is_grad_enabled():
                hidden = checkpoint(layer.packed, *given, use_reentrant=False)
            else:
                hidden = layer.packed(*given)
        return hidden

    def precompute_kv(self, image: Tensor, norm: nn.LayerNorm | None = None) -> ImageKV:
        """Keys and values of image features for all cross-attention layers, by one matrix product.

        Args:
            image: float[B,P,Dv]; of a Q-Former that takes padded features, rows of NaN are padding.
            norm: when given, `image` is normalised without an affine part, and the weight and bias of this norm are
                folded into the projections: (x * g + b) W' = x (W g)' + W b. The image then needs no gradient for
                the norm's sake, which saves the widest product of the backward pass.

        Returns:
            Keys and values to hand to any number of passes.
        """
        mask = ~image[..., 0].isnan() if self.cfg.padded_features else None
        if mask is not None:  # 0 x NaN would still be NaN
            image = image.masked_fill(~mask[..., None], 0.0)
        attentions: list[CrossAttention] = [
            layer.cross_attention for layer in self.blocks if layer.cross_attention is not None]
        linears = [linear for attention in attentions for linear in (attention.key, attention.value)]
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        if norm is not None:
            # not a matrix product, which autocast would round: this enters every key and value
            bias = bias + (weight * norm.bias).sum(1)
            weight = weight * norm.weight
        projected = linear(image, weight, bias)
        heads = projected.unflatten(-1, (len(linears), self.cfg.num_heads, -1))
        return ImageKV(heads.unbind(2), mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary: float[..., D] -> float[..., V]."""
        assert self.lm_head is not None, "this Q-Former was built without a language-model head"
        return linear(self.lm_head(hidden), self.embeddings.word_embeddings.weight, self.lm_head.bias)

    def _images(self, image: Tensor | ImageKV | Sequence[ImageKV] | None) -> Sequence[ImageKV]:
        if image is None:
            return ()
        if isinstance(image, Tensor):
            return (self.precompute_kv(image),)
        return (image,) if isinstance(image, ImageKV) else image

    @staticmethod
    def _mask(pattern: Pattern, num_query: int, text_ids: Tensor | None, text_mask: Tensor | None,
              cache: Cache | None) -> Tensor | None:
        """None wherever everything is visible."""
        if text_ids is None:
            return None
        if cache is not None:
            return _decoding_mask(text_ids, cache)
        if text_mask is None:
            if pattern == "bidirectional":
                return None
            text_mask = torch.ones_like(text_ids, dtype=torch.bool)
        return attention_mask(pattern, num_query, text_mask)


def _decoding_mask(text_ids: Tensor, cache: Cache) -> Tensor | None:
    """New tokens see the whole cache and each other causally; one new token sees everything."""
    batch, length = text_ids.shape
    if length == 1:
        return None
    held = cache.layers[0][0].shape[2]
    text_mask = torch.ones(batch, length, dtype=torch.bool, device=text_ids.device)
    mask = attention_mask("multi_modal_causal", held, text_mask)
    return None if mask is None else mask[:, :, held:]
