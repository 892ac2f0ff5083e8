"""The parts that all archs share, built from a section: vision encoder, Q-Former, and the Q-Former's tokenizer."""

from __future__ import annotations

from typing import Any

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.config import Blip2Config
from lavis_lite.models.plain_text import Side
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.models.vision.encoder import VisionEncoder


def qformer_config(cfg: Blip2Config, vocab_size: int, vision_width: int, *, with_text: bool = True,
                   with_lm_head: bool = True) -> QFormerConfig:
    """Sizes of the Q-Former that a section asks for."""
    return QFormerConfig(
        hidden_size=cfg.qformer_hidden_size, num_layers=cfg.qformer_layers, num_heads=cfg.qformer_heads,
        intermediate_size=cfg.qformer_intermediate_size, vocab_size=vocab_size,
        max_positions=cfg.qformer_max_positions, num_queries=cfg.num_query_token,
        cross_attention_freq=cfg.cross_attention_freq, vision_width=vision_width, dropout=cfg.qformer_dropout,
        attention_dropout=cfg.qformer_attention_dropout,
        layer_norm_eps=cfg.qformer_layer_norm_eps, initializer_range=cfg.qformer_initializer_range,
        with_text=with_text, with_lm_head=with_lm_head)


def build_parts(cfg: Blip2Config, *, with_text: bool = True, with_lm_head: bool = True,
                truncation_side: Side = "right") -> dict[str, Any]:
    """vision_encoder, qformer and tokenizer of a section.

    All weights are random and no file but the tokenizer's is read: `lavis_lite.checkpoints.weights.build_model` fills
    them. On the meta device (`with torch.device("meta")`) shapes are all there is.

    Args:
        cfg: the section.
        with_text: whether the Q-Former has its text half.
        with_lm_head: whether the text half ends in a language-model head (ITG).
        truncation_side: where texts for the Q-Former lose tokens.

    Raises:
        ConfigError: sizes that do not go together.
    """
    if with_text and cfg.max_txt_len > cfg.qformer_max_positions:
        raise ConfigError(f"model.max_txt_len: {cfg.max_txt_len} tokens are more than the {cfg.qformer_max_positions} "
                          "positions of model.qformer_max_positions.")
    encoder = VisionEncoder(cfg.vit_model, cfg.image_size, cfg.drop_path_rate, cfg.use_grad_checkpoint,
                            cfg.vit_precision, frozen=cfg.freeze_vit, pretrained=cfg.vit_weights == "timm",
                            **cfg.vit_args)
    tokenizer = TextTokenizer(cfg.tokenizer, cfg.max_txt_len, truncation_side)
    vocab_size = tokenizer.special_ids.vocab_size if with_text else 0
    qformer = QFormer(qformer_config(cfg, vocab_size, encoder.width, with_text=with_text, with_lm_head=with_lm_head))
    qformer.grad_checkpoint = cfg.qformer_grad_checkpoint
    return {"vision_encoder": encoder, "qformer": qformer, "tokenizer": tokenizer}
