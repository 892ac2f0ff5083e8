"""A tiny stage-1 model and batches for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import SpecialIds, TextTokenizer, TextTokens
from lavis_lite.models.vision.encoder import Encoder

TINY = QFormerConfig(hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48, vocab_size=61, max_positions=24,
                     num_queries=5, vision_width=24, dropout=0.0)
SPECIAL = SpecialIds(vocab_size=61, pad=0, begin=60, end=2)


class PatchEncoder(Encoder):
    """float[B,3,4,4] -> float[B,4,24]: a linear map of every row of pixels."""

    width, image_size = 24, 4

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 24)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return self.project(image.transpose(1, 2).flatten(2))


class NumberTokenizer(TextTokenizer):
    """Words are numbers: "7 8" -> [1, 7, 8, 2]."""

    special_ids = SPECIAL  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__("numbers", 16)

    def __call__(self, texts: Any, max_length: int | None = None) -> TextTokens:
        """See the class."""
        return TextTokens.from_lists([[1, *map(int, text.split()), 2] for text in texts], SPECIAL.pad)

    def decode(self, rows: Any) -> list[str]:
        """The inverse."""
        return [" ".join(map(str, row)) for row in rows]


def tiny_model(seed: int = 0, cls: type[Blip2Qformer] = Blip2Qformer, spread: float = 0.2,
               **kwargs: Any) -> Blip2Qformer:
    """A stage-1 model whose weights are far enough from their start to tell everything apart."""
    torch.manual_seed(seed)
    model = cls(PatchEncoder(), QFormer(TINY), NumberTokenizer(), embed_dim=16, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        model.temp.fill_(0.1)
    return model


def tiny_batch(size: int = 6, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Images, texts of different lengths, uniform numbers."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [4, 7, 3, 9, 5, 6, 2, 8]
    texts = [" ".join(map(str, torch.randint(3, 60, (lengths[row % 8],), generator=generator).tolist()))
             for row in range(size)]
    return {"image": torch.randn(size, 3, 4, 4, generator=generator).to(dtype), "text_input": texts,
            "uniform": torch.rand(size, 2, dtype=torch.float64, generator=generator)}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of all trained parameters."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
