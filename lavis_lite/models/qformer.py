"""The Q-Former (BLIP-2, section 3.1): one transformer for queries and text, in BERT's shape.

Queries and text share every self-attention; each has its own feed-forward layers; only queries look at the image,
in every `cross_attention_freq`-th layer. Stage 1, stage 2 (text half dropped) and InstructBLIP (instruction in) all
use this class.

Axes: B batch, Q queries, L text tokens, S = Q + L, P image patches, D width, Dv image feature width, H heads,
C number of cross-attention layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.models.masks import Pattern, attention_mask


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
    with_text: bool = True
    """False drops the text half: embeddings of words and positions, text feed-forwards, language-model head"""
    with_lm_head: bool = True
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02


@dataclass(frozen=True)
class ImageKV:
    """Keys and values of the image for all cross-attention layers, computed once and shared.

    parts: 2C tensors float[B, P, H, D/H], in order key_0, value_0, key_1, ...
    groups: how many consecutive batches of queries look at these images: row g*B + b of the hidden states looks at
        image b, for g < groups.
    """

    parts: tuple[Tensor, ...]
    groups: int = 1

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the index-th cross-attention layer, float[B, P, H, D/H] each."""
        return self.parts[2 * index], self.parts[2 * index + 1]

    def select(self, rows: Tensor) -> ImageKV:
        """The images `rows` (int64[M]) of the batch, with repetition allowed."""
        return ImageKV(tuple(part.index_select(0, rows) for part in self.parts))

    def repeated(self, groups: int) -> ImageKV:
        """The same images, looked at by `groups` batches of queries; nothing is copied."""
        return replace(self, groups=groups)

    @property
    def rows(self) -> int:
        """Number of hidden-state rows that look at these images."""
        return self.groups * self.parts[0].shape[0]


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


class Attention(nn.Module):
    """What self- and cross-attention share: projections, output, residual and norm after it (post-LN)."""

    def __init__(self, cfg: QFormerConfig, key_width: int) -> None:
        super().__init__()
        width = cfg.hidden_size
        self.num_heads = cfg.num_heads
        self.attention_dropout = cfg.dropout
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
        if groups == 1:
            return self.attend(query.transpose(1, 2), key, value, None)
        stacked = query.unflatten(0, (groups, -1)).permute(1, 3, 0, 2, 4).flatten(2, 3)
        mixed = self.attend(stacked, key, value, None)
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

    def after_attention(self, hidden: Tensor, num_query: int, images: Sequence[ImageKV], index: int) -> Tensor:
        """Cross-attention and feed-forwards: float[B,S,D] -> float[B,S,D]; the first num_query rows are queries."""
        query, text = hidden.split([num_query, hidden.shape[1] - num_query], 1)
        parts = []
        if num_query:
            if self.cross_attention is not None and images:
                query = self.cross_attention(query, images, index)
            parts.append(self.query_ffn(query))
        if text.shape[1]:
            assert self.text_ffn is not None, "this Q-Former was built without its text half"
            parts.append(self.text_ffn(text))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Embeddings(nn.Module):
    """Words plus positions; the norm and the dropout also go over the query tokens (LAVIS)."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        if cfg.with_text:
            self.word_embeddings = nn.Embedding(cfg.vocab_size, cfg.hidden_size, padding_idx=0)
            self.position_embeddings = nn.Embedding(cfg.max_positions, cfg.hidden_size)
        self.norm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)

    def words(self, ids: Tensor, first_position: int = 0) -> Tensor:
        """int64[B,L] -> float[B,L,D], before norm and dropout."""
        positions = torch.arange(first_position, first_position + ids.shape[1], device=ids.device)
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
    """See the module's docstring. Parameter names are a contract: key maps of checkpoints rely on them."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embeddings = Embeddings(cfg)
        self.layers = nn.ModuleList(
            Layer(cfg, index % cfg.cross_attention_freq == 0) for index in range(cfg.num_layers))
        self.lm_head = LanguageHead(cfg) if cfg.with_text and cfg.with_lm_head else None
        self.apply(self._initialise)

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
            pattern: who sees whom (`masks.Pattern`).
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
                   output_rows: tuple[int, Sequence[slice]] | None = None) -> Tensor:
        """All layers over an embedded sequence whose first `num_query` tokens are queries.

        Args:
            hidden: float[N,S,D].
            num_query: Q.
            mask: bool[N,1,S,T] or None.
            images: keys and values for the N rows in order.
            past: cache to attend to.
            keep: cache to fill.
            output_rows: (how many of the output rows are queries, stretches of S whose output is wanted): the last
                layer computes only these. None: all.

        Returns:
            float[N,R,D], R the number of wanted rows (S by default).
        """
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            rows = None
            if index == last and output_rows is not None:
                num_query, rows = output_rows
            earlier = None if past is None else past.layers[index]
            hidden, key_value = layer.self_attention(hidden, mask, earlier, rows)
            if keep is not None:
                keep.layers.append(key_value)
            hidden = layer.after_attention(hidden, num_query, images, index // self.cfg.cross_attention_freq)
        return hidden

    def precompute_kv(self, image: Tensor, norm: nn.LayerNorm | None = None) -> ImageKV:
        """Keys and values of image features for all cross-attention layers, by one matrix product.

        Args:
            image: float[B,P,Dv].
            norm: when given, `image` is normalised without an affine part, and the weight and bias of this norm are
                folded into the projections: (x * g + b) W' = x (W g)' + W b. The image then needs no gradient for
                the norm's sake, which saves the widest product of the backward pass.

        Returns:
            Keys and values to hand to any number of passes.
        """
        attentions = [layer.cross_attention for layer in self.layers if layer.cross_attention is not None]
        linears = [linear for attention in attentions for linear in (attention.key, attention.value)]
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        if norm is not None:
            bias = bias + _full_precision_mv(weight, norm.bias)
            weight = weight * norm.weight
        projected = F.linear(image, weight, bias)
        heads = projected.unflatten(-1, (len(linears), self.cfg.num_heads, -1))
        return ImageKV(heads.unbind(2))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary: float[..., D] -> float[..., V]."""
        assert self.lm_head is not None, "this Q-Former was built without a language-model head"
        return F.linear(self.lm_head(hidden), self.embeddings.word_embeddings.weight, self.lm_head.bias)

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


def _full_precision_mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix @ vector outside autocast: a small product whose rounding would enter every key and value."""
    return (matrix * vector).sum(1)


def _take(tensor: Tensor, rows: Sequence[slice], axis: int) -> Tensor:
    """The stretches `rows` of an axis, joined; a view when there is one stretch."""
    parts = [tensor.narrow(axis, row.start, row.stop - row.start) for row in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
