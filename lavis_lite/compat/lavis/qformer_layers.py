"""The layers of a Q-Former under BERT's names; see `lavis_lite.compat.lavis.qformer`.

Axes: B batch, Q queries, L text tokens, S = Q + L, P image patches. D width, Dv image feature width, H heads, T tokens
looked at, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.compat.lavis.sizes import current
from lavis_lite.errors import ConfigError, DataError

Past = tuple[Tensor, Tensor]
"""keys and values of one layer's self-attention, float[B,H,T,D/H] each"""


class BertConfig:
    """Sizes of a Q-Former by BERT's names; the defaults are BERT-base's.

    Further attributes may be set, as LAVIS' `init_Qformer` sets encoder_width, add_cross_attention,
    cross_attention_freq and query_length.
    """

    def __init__(self, **settings: Any) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = 30522, 768, 3072
        self.num_hidden_layers, self.num_attention_heads, self.max_position_embeddings = 12, 12, 512
        self.hidden_dropout_prob, self.attention_probs_dropout_prob = 0.1, 0.1
        self.layer_norm_eps, self.initializer_range, self.pad_token_id = 1e-12, 0.02, 0
        self.add_cross_attention, self.cross_attention_freq = True, 2
        self.encoder_width, self.query_length = 1408, 32
        self.name_or_path: str | None = None
        for key, value in settings.items():
            setattr(self, key, value)

    @classmethod
    def from_pretrained(cls, name: str, **settings: Any) -> BertConfig:
        """The sizes in force (see `sizes`): LAVIS' bert-base-uncased, unless a section says otherwise."""
        size = current()
        return cls(hidden_size=size.qformer_hidden_size, num_hidden_layers=size.qformer_layers,
                   num_attention_heads=size.qformer_heads, intermediate_size=size.qformer_intermediate_size,
                   max_position_embeddings=size.qformer_max_positions, hidden_dropout_prob=size.qformer_dropout,
                   attention_probs_dropout_prob=size.qformer_dropout, name_or_path=name,
                   initializer_range=size.qformer_initializer_range, **settings)


class BertEmbeddings(nn.Module):
    """Queries, then words plus positions; norm and dropout over both."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings: nn.Embedding | None = nn.Embedding(config.vocab_size, config.hidden_size,
                                                                 padding_idx=config.pad_token_id)
        self.position_embeddings: nn.Embedding | None = nn.Embedding(config.max_position_embeddings,
                                                                     config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None])
        self.config = config

    def forward(self, input_ids: Tensor | None = None, position_ids: Tensor | None = None,
                query_embeds: Tensor | None = None, past_key_values_length: int = 0) -> Tensor:
        """int64[B,L] and float[B,Q,D], one of which may be None -> float[B,Q+L,D]."""
        parts = [] if query_embeds is None else [query_embeds]
        if input_ids is not None:
            if self.word_embeddings is None or self.position_embeddings is None:
                raise DataError("this Q-Former has no text half (no word_embeddings), so it cannot read input_ids.")
            if position_ids is None:
                start, table = past_key_values_length, self.position_ids
                assert isinstance(table, Tensor)
                position_ids = table[:, start:start + input_ids.shape[1]]
            parts.append(self.word_embeddings(input_ids) + self.position_embeddings(position_ids))
        return self.dropout(self.LayerNorm(torch.cat(parts, 1)))


class BertSelfAttention(nn.Module):
    """Attention to the sequence itself, or to image features."""

    def __init__(self, config: BertConfig, is_cross_attention: bool = False) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(f"the Q-Former's width {config.hidden_size} is not a multiple of its "
                              f"{config.num_attention_heads} heads.")
        width = config.encoder_width if is_cross_attention else config.hidden_size
        self.num_attention_heads, self.all_head_size = config.num_attention_heads, config.hidden_size
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.position_embedding_type = "absolute"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key, self.value = nn.Linear(width, config.hidden_size), nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        """float[B,S,D] -> float[B,H,S,D/H]."""
        return x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, head_mask: None = None,
                encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
                past_key_value: Past | None = None, output_attentions: bool = False) -> tuple[Tensor, Past]:
        """Attend.

        Args:
            hidden_states: float[B,S,D].
            attention_mask: of the sequence itself, additive, float broadcast to [B,H,S,T]; None: all is visible.
            head_mask, output_attentions: of LAVIS' signature; they have no effect.
            encoder_hidden_states: float[B,P,Dv]; None: the sequence itself.
            encoder_attention_mask: of these, as `attention_mask`.
            past_key_value: keys and values of earlier tokens, put in front.

        Returns:
            float[B,S,D], and keys and values.
        """
        looked_at = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        attention_mask = attention_mask if encoder_hidden_states is None else encoder_attention_mask
        key, value = (self.transpose_for_scores(layer(looked_at)) for layer in (self.key, self.value))
        if past_key_value is not None:
            key, value = torch.cat([past_key_value[0], key], 2), torch.cat([past_key_value[1], value], 2)
        query = self.transpose_for_scores(self.query(hidden_states))
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2), (key, value)


class BertSelfOutput(nn.Module):
    """Projection, dropout, residual, norm; of a feed-forward with another input width."""

    def __init__(self, config: BertConfig, width: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(width or config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """float[B,S,*], residual float[B,S,D] -> float[B,S,D]."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)


class BertOutput(BertSelfOutput):
    """The second half of a feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, config.intermediate_size)


class BertAttention(nn.Module):
    """Attention and its output; `self` may be replaced by a module that takes the same arguments."""

    def __init__(self, config: BertConfig, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, is_cross_attention)
        self.output = BertSelfOutput(config)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As `BertSelfAttention`, with output projection and residual."""
        mixed, *rest = self.self(hidden_states, *args, **kwargs)
        return self.output(mixed, hidden_states), *rest


class BertIntermediate(nn.Module):
    """The first half of a feed-forward: a linear layer with an exact GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float[B,S,D] -> float[B,S,intermediate]."""
        return F.gelu(self.dense(hidden_states))


class BertLayer(nn.Module):
    """Shared self-attention, cross-attention of the queries (every `cross_attention_freq`-th layer), two feed-forwards.

    `intermediate` and `output` (the text's) may be None.
    """

    def __init__(self, config: BertConfig, layer_num: int) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.layer_num = layer_num
        self.has_cross_attention = bool(config.add_cross_attention and layer_num % config.cross_attention_freq == 0)
        if self.has_cross_attention:
            self.crossattention = BertAttention(config, is_cross_attention=True)
        self.intermediate: BertIntermediate | None = BertIntermediate(config)
        self.output: BertOutput | None = BertOutput(config)
        self.intermediate_query, self.output_query = BertIntermediate(config), BertOutput(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, image: Tensor | None,
                image_mask: Tensor | None, past: Past | None, query_length: int) -> tuple[Tensor, Past]:
        """float[B,S,D], queries first -> float[B,S,D], and the keys and values of the self-attention."""
        hidden_states, present = self.attention(hidden_states, attention_mask, past_key_value=past)[:2]
        query, text = hidden_states.split([query_length, hidden_states.shape[1] - query_length], 1)
        parts = []
        if query_length:
            if self.has_cross_attention and image is not None:
                query = self.crossattention(query, encoder_hidden_states=image, encoder_attention_mask=image_mask)[0]
            parts.append(self.output_query(self.intermediate_query(query), query))
        if text.shape[1]:
            if self.intermediate is None or self.output is None:
                raise DataError("this Q-Former's layers have no text half (no intermediate and output), so it "
                                "cannot read input_ids.")
            parts.append(self.output(self.intermediate(text), text))
        return torch.cat(parts, 1), present


class BertPredictionHeadTransform(nn.Module):
    """Linear layer, exact GELU, norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float[...,D] -> float[...,D]."""
        return self.LayerNorm(F.gelu(self.dense(hidden_states)))


class BertLMPredictionHead(nn.Module):
    """The transform, then the word embeddings as output layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder.bias = self.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float[...,D] -> float[...,V]."""
        return self.decoder(self.transform(hidden_states))


class BertOnlyMLMHead(nn.Module):
    """`Qformer.cls`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, sequence_output: Tensor) -> Tensor:
        """float[B,L,D] -> float[B,L,V]."""
        return self.predictions(sequence_output)
