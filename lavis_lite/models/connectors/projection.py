"""Connectors that change every feature by itself: LLaVA's linear layer and LLaVA 1.5's MLP (arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lavis_lite.models.connectors.base import Connector, positive
from lavis_lite.registry import registry


@registry.register_connector("mlp")
class MLP(Connector):
    """`depth` linear layers with exact GELUs between them, one vector per feature: mlp2x_gelu is depth 2.

    Args:
        features, feature_width, width: see `Connector`.
        depth: linear layers; the first brings Dv to D.
    """

    any_count = False

    def __init__(self, features: int | None, feature_width: int, width: int, *, depth: int = 2) -> None:
        super().__init__(features, feature_width, width)
        positive(depth=depth)
        layers: list[nn.Module] = [nn.Linear(feature_width, width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, mask: Tensor | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """float[B,P,Dv] -> float[B,P,D]."""
        vectors: Tensor = self.layers(features)
        return vectors


@registry.register_connector("linear")
class Linear(MLP):
    """One linear layer, as LLaVA and MiniGPT-4 have it."""

    def __init__(self, features: int | None, feature_width: int, width: int) -> None:
        super().__init__(features, feature_width, width, depth=1)
