"""BLIP-2's Q-Former as a connector, trained or frozen, with or without the instruction (InstructBLIP).

Its parameters have the names of BLIP-2's, so that checkpoints of stage 1 and stage 2 fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError
from lavis_lite.models.base import freeze
from lavis_lite.models.connectors.base import Connector
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.registry import registry


@registry.register_connector("qformer")
class QFormerConnector(Connector):
    """Norm over the features, Q-Former, projection to the words' width.

    Args:
        features, feature_width, width: see `Connector`.
        queries: Q.
        reads_text: the Q-Former reads the instruction along with the image.
        tokenizer: of these instructions: bert-base-uncased, mini, or a folder.
        max_txt_len: tokens of an instruction.
        frozen: only the projection trains (MiniGPT-4).
        sizes: fields of `QFormerConfig`, such as hidden_size and num_layers.

    Raises:
        ConfigError: a size that a Q-Former does not have.
    """

    def __init__(self, features: int | None, feature_width: int, width: int, *, queries: int = 32,
                 reads_text: bool = False, tokenizer: str = "bert-base-uncased", max_txt_len: int = 32,
                 frozen: bool = False, sizes: dict[str, Any] | None = None) -> None:
        super().__init__(features, feature_width, width)
        self.tokens, self.reads_instructions = queries, reads_text  # type: ignore[misc]  # of this one
        self.tokenizer = TextTokenizer(tokenizer, max_txt_len, "left") if reads_text else None
        words = 0 if self.tokenizer is None else self.tokenizer.special_ids.vocab_size
        try:
            cfg = QFormerConfig(vision_width=feature_width, num_queries=queries, vocab_size=words,
                                with_text=reads_text, with_lm_head=False, **(sizes or {}))
        except TypeError as error:
            raise ConfigError(f"model.connector.sizes: {error}.") from error
        self.ln_vision = nn.LayerNorm(feature_width)
        self.qformer = QFormer(cfg)
        self.query_tokens = nn.Parameter(torch.empty(1, queries, cfg.hidden_size).normal_(std=cfg.initializer_range))
        self.language_projection = nn.Linear(cfg.hidden_size, width)
        if frozen:
            freeze(self.qformer)
            freeze(self.ln_vision)
            self.query_tokens.requires_grad_(False)

    def forward(self, features: Tensor, mask: Tensor | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """float[B,P,Dv] -> float[B,Q,D]."""
        image = replace(self.qformer.precompute_kv(self.ln_vision(features)), mask=mask)
        ids, real = None, None
        if self.tokenizer is not None:
            if texts is None:
                raise ConfigError("this Q-Former reads the instruction: give the texts along with the images.")
            tokens = self.tokenizer(texts).to(features.device)
            ids, real = tokens.ids, tokens.mask
        queries = self.query_tokens.expand(len(features), -1, -1)
        output = self.qformer(queries, ids, real, image, "bidirectional").query
        vectors: Tensor = self.language_projection(output)
        return vectors
