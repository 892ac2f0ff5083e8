"""A model of another project: a frozen vision encoder, a linear projector, and a language model of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lavis_lite.checkpoints.weights import packaged
from lavis_lite.config.schema import ModelConfig
from lavis_lite.models.base import BaseModel, freeze
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.models.provenance import WeightSource, mark_loaded
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.registry import registry


@dataclass
class LlavaLikeConfig(ModelConfig):
    """Section `model`."""

    arch: str = "llava_like"
    vit_model: str = "mini"
    vit_weights: str | None = None
    image_size: int = 64
    language_model: str = "mini/opt"
    prompt: str = ""


@registry.register_model("llava_like")
class LlavaLike(BaseModel):
    """image float[B,3,H,W] and text_input -> loss of the text after the projected patches."""

    config_class = LlavaLikeConfig

    def __init__(self, cfg: LlavaLikeConfig) -> None:
        super().__init__()
        self.vision_encoder = VisionEncoder(cfg.vit_model, cfg.image_size, frozen=True)
        folder = str(packaged(cfg.language_model) or cfg.language_model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.language_model = freeze(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        mark_loaded(self.language_model, WeightSource("", "language model", cfg.language_model, folder))
        self.projector = nn.Linear(self.vision_encoder.width, self.language_model.config.hidden_size)
        self.prompt = cfg.prompt

    @classmethod
    def from_config(cls, cfg: LlavaLikeConfig) -> LlavaLike:
        """See the class."""
        return cls(cfg)

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        """Loss of the texts."""
        prefix = self.projector(self.vision_encoder(samples["image"]))
        texts = [f"{text}{self.tokenizer.eos_token}" for text in samples["text_input"]]
        tokens = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
        unseen = torch.full(prefix.shape[:2], -100, device=self.device)
        labels = torch.cat([unseen, tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)], 1)
        inputs = torch.cat([prefix, self._embed(tokens.input_ids)], 1)
        return ModelOutput(self.language_model(inputs_embeds=inputs, labels=labels).loss)

    @torch.no_grad()
    def generate(self, samples: dict[str, Any], num_beams: int = 1, max_length: int = 8, min_length: int = 1,
                 **more: Any) -> list[str]:
        """One text per image."""
        prefix = self.projector(self.vision_encoder(samples["image"]))
        ids = self.language_model.generate(inputs_embeds=prefix, max_new_tokens=max_length, num_beams=num_beams,
                                           do_sample=False)
        return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def _embed(self, ids: Tensor) -> Tensor:
        return self.language_model.get_input_embeddings()(ids)
