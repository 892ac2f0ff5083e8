"""Comparisons without rounding: a model in float64."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DoubleEncoder(nn.Module):
    """A vision encoder in float64, which the package's own never is."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.vit: Any = encoder.vit.double()

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.vit.forward_features(image.double())
        return features


def exact(model: Any) -> Any:
    """The same model in float64."""
    model.vision_encoder = DoubleEncoder(model.vision_encoder)
    if hasattr(model, "language_model"):  # which keeps its type when the model around it changes
        model.language_model.model.double()
    return model.double()
