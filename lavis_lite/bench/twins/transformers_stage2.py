"""transformers' Blip2ForConditionalGeneration doing the work of the stage-2 step, as another twin.

Its own model with its own weights. The vision encoder (but for the norm after it, our `ln_vision`) and the language
model are frozen and in eval mode. Images are placeholder tokens in the text. As in the plain twin, texts are padded to
the longest of the batch, and padding is not learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.torchvision_shim import ensure_torchvision

IGNORE = -100


def build(vision: dict[str, Any], qformer: dict[str, Any], text: dict[str, Any], queries: int, image_token: int) -> Any:
    """A random model of three configurations: Blip2VisionConfig's, Blip2QFormerConfig's and the language model's."""
    ensure_torchvision()  # transformers imports torchvision with its BLIP-2
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    model: Any = Blip2ForConditionalGeneration(Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=queries,
        image_token_index=image_token))
    if text["model_type"] == "t5":  # the same model as ours: an output matrix of its own, and the exact GELU
        head = model.language_model.lm_head
        head.weight = nn.Parameter(head.weight.detach().clone())
        for module in model.language_model.modules():
            if "wi_0" in dict(module.named_children()):
                module.act = nn.GELU()
    return model


class HFStage2(nn.Module):
    """The step's loss.

    Args:
        model: Blip2ForConditionalGeneration.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        model.vision_model.requires_grad_(False)
        model.vision_model.post_layernorm.requires_grad_(True)
        model.language_model.requires_grad_(False)

    def train(self, mode: bool = True) -> HFStage2:
        """The frozen parts stay in eval mode."""
        super().train(mode)
        self.model.vision_model.eval()
        self.model.language_model.eval()
        return self

    def forward(self, samples: Mapping[str, Any]) -> Tensor:
        """As `PlainStage2.forward`."""
        config, before, after = self.model.config, samples["before"], samples["after"]
        count = config.num_query_tokens
        soft = [config.image_token_id] * count
        if config.text_config.is_encoder_decoder:
            rows, labels = [[*soft, *first] for first in before], self._rectangle(after, IGNORE)
        else:
            pairs = list(zip(before, after, strict=True))
            rows = [[*soft, *first, *second] for first, second in pairs]
            labels = self._rectangle([[*[IGNORE] * (count + len(first)), *second] for first, second in pairs],
                                     IGNORE)
        mask = self._rectangle([[1] * len(row) for row in rows], 0)
        output = self.model(pixel_values=samples["image"], input_ids=self._rectangle(rows, 0),
                            attention_mask=mask, labels=labels)
        loss: Tensor = output.loss
        return loss

    def _rectangle(self, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=self.model.device)
