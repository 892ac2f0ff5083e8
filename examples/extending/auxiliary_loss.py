"""An auxiliary loss outside the package: the query vectors of an image should differ from each other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.blip2.config import Blip2QformerConfig
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.registry import registry


@dataclass
class DiverseConfig(Blip2QformerConfig):
    """Stage 1's section, and the weight of the loss."""

    diversity_weight: float = 0.1


@registry.register_model("blip2_diverse")
class Diverse(Blip2Qformer):
    """Stage 1 with query vectors that are kept apart."""

    config_class = DiverseConfig

    @classmethod
    def from_config(cls, cfg: Any) -> "Diverse":
        model = super().from_config(cfg)
        model.diversity_weight = cfg.diversity_weight
        return model

    def auxiliary_losses(self, encoded: Any, samples: dict[str, Any]) -> dict[str, Tensor]:
        query = torch.nn.functional.normalize(encoded.hidden.query, dim=-1)  # float[B,Q,D]
        alike = query @ query.transpose(1, 2) - torch.eye(query.shape[1], device=query.device)
        return {"diversity": self.diversity_weight * alike.square().mean()}
