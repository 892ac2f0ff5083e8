"""LAVIS' `Blip2Base`: the helpers that subclasses build their parts with, and what they return."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from lavis_lite.compat.lavis.base_model import BaseModel
from lavis_lite.compat.lavis.qformer import BertLMHeadModel
from lavis_lite.compat.lavis.qformer_layers import BertConfig
from lavis_lite.compat.lavis.sizes import current
from lavis_lite.compat.lavis.vision import LayerNorm, create_vision_encoder, disabled_train
from lavis_lite.models.plain_text import Side
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.processors.lemmatizer import shared_lemmatizer

__all__ = ["Blip2Base"]


class Blip2Base(BaseModel):
    """A vision encoder, a Q-Former under LAVIS' names and a tokenizer, made by LAVIS' calls."""

    vit_name: str
    visual_encoder: nn.Module
    freeze_vit: bool

    @classmethod
    def init_tokenizer(cls, truncation_side: Side = "right") -> Any:
        """BERT's tokenizer with [DEC] as its bos token; `sizes.tokenizer` chooses another one.

        Raises:
            ConfigError: it is neither here nor downloadable.
        """
        return TextTokenizer(current().tokenizer, truncation_side=truncation_side).loaded

    @classmethod
    def init_Qformer(cls, num_query_token: int, vision_width: int,
                     cross_attention_freq: int = 2) -> tuple[BertLMHeadModel, nn.Parameter]:
        """(the Q-Former, query tokens float[1,Q,D]), BERT's weights where BERT has them.

        Raises:
            CheckpointError: BERT is neither here nor downloadable.
        """
        config = BertConfig.from_pretrained("bert-base-uncased")
        config.encoder_width, config.query_length = vision_width, num_query_token
        config.add_cross_attention, config.cross_attention_freq = True, cross_attention_freq
        qformer = BertLMHeadModel.from_pretrained("bert-base-uncased", config=config)
        query_tokens = nn.Parameter(torch.zeros(1, num_query_token, config.hidden_size))
        nn.init.normal_(query_tokens, std=config.initializer_range)
        return qformer, query_tokens

    def init_vision_encoder(self, model_name: str, img_size: int, drop_path_rate: float, use_grad_checkpoint: Any,
                            precision: str) -> tuple[nn.Module, LayerNorm]:
        """(the ViT, a norm over its features); see `create_vision_encoder`."""
        encoder = create_vision_encoder(model_name, img_size, drop_path_rate, use_grad_checkpoint, precision)
        self.vit_name = model_name
        return encoder, LayerNorm(encoder.num_features)

    def add_encoder(self, model_name: str, img_size: int, drop_path_rate: float, use_grad_checkpoint: Any,
                    precision: str, freeze_vit: bool) -> None:
        """Set visual_encoder and ln_vision; a frozen encoder stays in evaluation mode."""
        self.freeze_vit = freeze_vit
        self.visual_encoder, norm = self.init_vision_encoder(
            model_name, img_size, drop_path_rate, use_grad_checkpoint, precision)
        self.add_module("ln_vision", norm)
        if freeze_vit:
            self.visual_encoder.requires_grad_(False).eval()
            self.visual_encoder.train = disabled_train  # type: ignore[assignment]

    def maybe_autocast(self, dtype: torch.dtype = torch.float16) -> contextlib.AbstractContextManager[Any]:
        """Autocast to `dtype` on a GPU; on a CPU nothing changes."""
        return torch.autocast("cuda", dtype=dtype) if self.device.type == "cuda" else contextlib.nullcontext()

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """Groups by decay and by layer: the rate of each of the encoder's layers is scaled by `lr_scale` once more."""
        encoder: Any = self._modules.get("visual_encoder")
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = 1.0
            if name.startswith("visual_encoder.") and hasattr(encoder, "get_num_layer"):
                depth = encoder.get_num_layer(name.removeprefix("visual_encoder."))
                scale = lr_scale ** (encoder.get_num_layer() - depth)
            decay = 0.0 if parameter.ndim == 1 or name.endswith(".bias") else weight_decay
            group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
            group["params"].append(parameter)
        return list(groups.values())

    def _lemmatize(self, answers: list[str]) -> list[str]:
        """Answers in their base form: "two dogs" -> "two dog"."""
        return shared_lemmatizer()(answers)
