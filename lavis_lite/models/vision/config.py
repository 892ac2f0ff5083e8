"""The keys of a `model` section about its encoder. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.vision.shapes import FEATURES, encoder_error, training_of
from lavis_lite.registry import registry


@dataclass
class EncoderConfig(ModelConfig):
    """What the sections of all models with an encoder share: LAVIS' keys, then this package's."""

    vit_model: str = "eva_clip_g"
    """eva_clip_g | clip_L | mini | a plain ViT of timm by its name | features (samples bring them) | a registered
    encoder"""
    image_size: int = 224
    """pixels per side"""
    drop_path_rate: float = 0.0
    """stochastic depth of the vision encoder; 0: none"""
    use_grad_checkpoint: bool | Literal["fairscale"] = False
    """of the vision encoder: false | true | fairscale"""
    vit_precision: Literal["fp16", "fp32", "bf16"] = "fp16"
    """dtype of a frozen vision encoder"""
    freeze_vit: bool = True
    """whether the vision encoder keeps its weights"""
    # this package's -------------------------------------------------------------------------------------------------
    vit_weights: str | None = None
    """file or URL of the vision encoder's weights; None: the preset's own; "timm": timm's download; "random": none"""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """other dimensions for the vision encoder: depth, width, heads, mlp_ratio, patch_size; norm_eps of its norms"""
    vit_layer: Any = None
    """which layer gives the features: from 1, or from the end (-1: the last with its norm, -2: the one before). A list
    joins several along the channels. null: -2, of mini -1"""
    vit_cls: Literal["keep", "drop"] = "keep"
    """class token and registers in front of the patches"""
    vit_train: str | None = None
    """frozen | full | last_N (the last N blocks) | lora; goes before freeze_vit, and null leaves it to that"""

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no weight of the encoder trains."""
        return training_of(self.vit_train, self.freeze_vit)[0] == "frozen"

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """An unknown encoder, sizes and layers that it cannot have, half precision for weights that train."""
        found = [(key, f"must be at least 1, not {self.image_size}.") for key in ("image_size",) if self.image_size < 1]
        if not 0.0 <= self.drop_path_rate < 1.0:
            found.append(("drop_path_rate", f"must be at least 0 and below 1, not {self.drop_path_rate}."))
        if self.use_grad_checkpoint == "fairscale" and find_spec("fairscale") is None:
            found.append(("use_grad_checkpoint", "'fairscale' needs the package fairscale: pip install fairscale, or "
                          "set it to true for torch's own checkpointing."))
        found += self._encoder_training_errors()
        if self.image_size >= 1:
            wrong = self._encoder_error()
            found += [wrong] if wrong else []
        return found

    def _encoder_training_errors(self) -> list[tuple[str, str]]:
        try:
            how, _ = training_of(self.vit_train, self.freeze_vit)
        except ConfigError as error:
            return [("vit_train", str(error).removeprefix("model.vit_train: "))]
        if how != "frozen" and self.vit_precision != "fp32":
            why = "model.freeze_vit is false" if self.vit_train is None else f"model.vit_train is {self.vit_train}"
            return [("vit_precision", f"{self.vit_precision} weights cannot be trained ({why}); use fp32. run.amp=true "
                     "gives half-precision arithmetic.")]
        if how == "lora" and find_spec("peft") is None:
            return [("vit_train", "lora needs peft: pip install 'lavis_lite[lora]'.")]
        return []

    def _encoder_error(self) -> tuple[str, str] | None:
        if self.vit_model == FEATURES or self.vit_model in registry.encoder.names():
            from lavis_lite.models.vision.given import registered_error  # needs torch

            return registered_error(self.vit_model, self.vit_args)
        numbers = self.vit_layer if isinstance(self.vit_layer, list) else [self.vit_layer]
        if self.vit_layer is not None and not all(type(number) is int for number in numbers):
            return "vit_layer", f"must be a number or a list of numbers, not {self.vit_layer!r}."
        return encoder_error(self.vit_model, self.image_size, self.vit_args, self.vit_weights == "timm", self.vit_layer)
