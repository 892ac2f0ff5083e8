"""The vision encoders known by name: their sizes, and what is wrong with a choice. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.torchvision_shim import ensure_torchvision

TIMM_MODULES = ["vision_transformer", "deit", "eva"]
"""timm's modules whose models are plain ViTs: patches, prefix tokens, a list of equal blocks."""


@dataclass(frozen=True)
class ViTShape:
    """Dimensions of a ViT; `depth` counts the blocks that are run."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_size: int
    """pixels per side"""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"vision encoder: width {self.width} is not a multiple of {self.heads} heads.")


@dataclass(frozen=True)
class Preset:
    """One row of the table below.

    Attributes:
        kind: the family, which decides the builder: "eva" or "clip".
        shape: dimensions, each of which a caller may override.
        align_corners: how position embeddings are interpolated to another resolution (as LAVIS does per family).
    """

    kind: str
    shape: ViTShape
    align_corners: bool


PRESETS = {
    # EVA-CLIP's ViT-g/14 has 40 blocks, CLIP's ViT-L/14 has 24; the last one is not run
    "eva_clip_g": Preset("eva", ViTShape(1408, 39, 16, 4.3637, 14), align_corners=False),
    "clip_L": Preset("clip", ViTShape(1024, 23, 16, 4.0, 14), align_corners=True),
}

MINI = "mini"
"""The embedded default: 64-pixel images, weights in the package."""
MINI_PATCH_SIZE = 8
"""pixels per side"""
SIZES = ("depth", "width", "heads", "mlp_ratio", "patch_size")
"""dimensions of an encoder that a caller may override"""


def override(shape: ViTShape, changes: dict[str, Any]) -> ViTShape:
    """The shape with every change that is not None."""
    return replace(shape, **{name: value for name, value in changes.items() if value is not None})


def check_image_size(name: str, image_size: int, patch_size: int) -> None:
    """Raise ConfigError unless the image divides into whole patches."""
    if image_size < patch_size or image_size % patch_size:
        near = max(round(image_size / patch_size), 1) * patch_size
        raise ConfigError(f"model.image_size: {image_size} pixels are not a whole number of {name}'s "
                          f"{patch_size}-pixel patches; the nearest is {near}.")


def check_timm_name(name: str) -> None:
    """Raise ConfigError unless `name` is a plain ViT of timm; nothing is built."""
    ensure_torchvision()
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        names = [*PRESETS, MINI, *timm.list_models(module="vision_transformer"), *timm.list_models(module="eva")]
        raise ConfigError(f"model.vit_model: unknown vision encoder {name!r}: {did_you_mean(name, names)}")
    if not timm.models.is_model_in_modules(architecture, TIMM_MODULES):
        raise ConfigError(f"model.vit_model: timm's {name!r} is not a plain ViT (patch tokens through equal blocks). "
                          f"Take one of {', '.join(PRESETS)} or a name from timm.list_models('vit_*').")
