"""The sections of a YAML file that describe a vision encoder with a Q-Former, and how those parts are built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavis_lite.config.schema import ModelConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.plain_text import Side
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer


@dataclass
class Blip2Config(ModelConfig):
    """What the sections `model` of all stages share: LAVIS' keys, then this package's."""

    vit_model: str = "eva_clip_g"
    """eva_clip_g | clip_L | mini | a plain ViT of timm by its name"""
    image_size: int = 224
    """pixels per side"""
    drop_path_rate: float = 0.0
    use_grad_checkpoint: Any = False
    """of the vision encoder: false | true | fairscale"""
    qformer_grad_checkpoint: bool = False
    """the same for the Q-Former"""
    vit_precision: Literal["fp16", "fp32", "bf16"] = "fp16"
    """dtype of a frozen vision encoder"""
    freeze_vit: bool = True
    num_query_token: int = 32
    cross_attention_freq: int = 2
    """cross-attention in every so many layers, from the first on"""
    max_txt_len: int = 32
    """tokens per text, [CLS] and [SEP] included"""
    # this package's -------------------------------------------------------------------------------------------------
    vit_weights: str | None = None
    """file or URL of the vision encoder's weights; None: the preset's own; "timm": timm's download; "random": none"""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """other dimensions for the vision encoder: depth, width, heads, mlp_ratio, patch_size"""
    ln_vision_eps: float = 1e-5
    """epsilon of the norm over image features: LAVIS' 1e-5; transformers has the vision encoder's 1e-6 there"""
    tokenizer: str = "bert-base-uncased"
    """bert-base-uncased | mini | a folder with vocab.txt"""
    qformer_hidden_size: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    qformer_intermediate_size: int = 3072
    qformer_max_positions: int = 512
    qformer_dropout: float = 0.1
    qformer_attention_dropout: float | None = None
    """of attention weights; None: as qformer_dropout"""
    qformer_layer_norm_eps: float = 1e-12
    """epsilon of the Q-Former's norms: BERT's"""
    qformer_initializer_range: float = 0.02
    """standard deviation of random weights: BERT's 0.02 is right for its width 768; a narrow Q-Former that starts at
    random learns many times faster with about width ** -0.5"""
    qformer_weights: str | None = "bert-base-uncased"
    """BERT weights to start from: a name, a folder, or None for random ones; not read when a checkpoint is loaded"""
    lm_reduction: Literal["global", "per_rank"] = "global"
    """language-model loss averaged over all tokens of a step, or over each rank's micro-batches first (LAVIS);
    run.lm_reduction sets it"""


@dataclass
class Blip2QformerConfig(Blip2Config):
    """Section `model` of stage 1."""

    embed_dim: int = 256
    """width in which image and text are compared"""
    itc_full_gradient: bool = False
    """gradient of ITC to both sides of each similarity; LAVIS: one"""
    itg_weight: float = 1.0
    """factor of image-grounded text generation in the sum of losses; 0: without it (BLIP-2, Table 6)"""


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
    from lavis_lite.models.vision.encoder import VisionEncoder

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
