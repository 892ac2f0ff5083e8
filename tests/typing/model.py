"""A model: an image's mean colour against a number per text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lavis_lite import BaseModel, ModelOutput, Samples
from lavis_lite.config.schema import ModelConfig
from lavis_lite.models.base import loss_weight
from lavis_lite.registry import registry


@dataclass
class MeanColorConfig(ModelConfig):
    """Section `model`."""

    arch: str = "typed_mean_color"
    width: int = 4


@registry.register_model("typed_mean_color")
class MeanColor(BaseModel):
    """image float[B,3,H,W] and text_input -> squared error of the text's length."""

    config_class = MeanColorConfig

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, 1))

    @classmethod
    def from_config(cls, cfg: MeanColorConfig) -> MeanColor:
        """See the class."""
        return cls(cfg.width)

    def forward(self, samples: Samples) -> ModelOutput:
        """The loss."""
        texts = samples.get("text_input", [])
        found = self._numbers(samples)
        lengths = torch.tensor([float(len(text)) for text in texts], device=self.device)
        loss = (found - lengths).square().mean()
        return ModelOutput(loss * loss_weight(samples, "loss", loss))

    def generate(self, samples: Samples, *, num_beams: int = 1, max_length: int = 8, min_length: int = 1) -> list[str]:
        """So many letters as the model says."""
        lengths = self._numbers(samples).round().clamp(min_length, max_length)
        return ["a" * int(length) for length in lengths.tolist()]

    def _numbers(self, samples: Samples) -> torch.Tensor:
        if "image" not in samples:
            raise KeyError("samples need an image")
        found: torch.Tensor = self.layers(samples["image"].mean((2, 3)))[:, 0]
        return found


def main() -> tuple[str, dict[str, float]]:
    """The registry gives the class back; a step's losses."""
    cls = registry.get_model_class("typed_mean_color")
    model = cls.from_config(MeanColorConfig(width=2))
    output: ModelOutput = model({"image": torch.zeros(2, 3, 4, 4), "text_input": ["a", "bb"]})
    return cls.__name__, {name: float(value) for name, value in output.losses().items()}
