"""A model outside the package: a linear projector between a frozen vision encoder and a frozen language model."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lavis_lite.checkpoints.weights import packaged
from lavis_lite.config.schema import ModelConfig
from lavis_lite.models.base import BaseModel
from lavis_lite.models.language import GenerationConfig, LanguageModel, build_language_model
from lavis_lite.models.language.build import load_pretrained
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.registry import registry


@dataclass
class ProjectorConfig(ModelConfig):
    """Section `model`."""

    vit_model: str = "mini"
    vit_weights: str | None = None
    image_size: int = 64
    llm: str = "mini/opt"


@registry.register_model("linear_projector")
class LinearProjector(BaseModel):
    """image float[B,3,H,W] and text_input -> loss of the texts."""

    config_class = ProjectorConfig

    def __init__(self, vision_encoder: VisionEncoder, language_model: LanguageModel) -> None:
        super().__init__()
        self.vision_encoder, self.language_model = vision_encoder, language_model
        self.projector = nn.Linear(vision_encoder.width, language_model.hidden_size)

    @classmethod
    def from_config(cls, cfg: Any) -> "LinearProjector":
        folder = str(packaged(cfg.llm) or cfg.llm)
        language_model = build_language_model(folder)
        load_pretrained(language_model, folder)
        return cls(VisionEncoder(cfg.vit_model, cfg.image_size, frozen=True), language_model)

    def soft_prompt(self, samples: dict[str, Any]) -> Tensor:
        """float[B, P, D] from image float[B, 3, H, W]."""
        return self.projector(self.vision_encoder(samples["image"]))

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        prompts = [""] * len(samples["text_input"])
        return ModelOutput(self.language_model.loss(self.soft_prompt(samples), prompts, samples["text_input"]))

    def generate(self, samples: dict[str, Any], num_beams: int = 5, max_length: int = 30, min_length: int = 1,
                 **more: Any) -> list[str]:
        soft = self.soft_prompt(samples)
        options = GenerationConfig(num_beams=num_beams, max_new_tokens=max_length, min_new_tokens=min_length)
        return self.language_model.generate(soft, [""] * len(soft), options)
