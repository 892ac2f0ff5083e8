"""The embedded default's vision encoder: a timm ViT of 0.9M parameters for 64-pixel pictures.

A stem of three strided convolutions makes the 8 x 8 patches: a plain patch embedding learns shapes far slower at this
size. Everything else is timm's ``VisionTransformer``, so whatever works on a timm ViT works here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

PATCH_SIZE = 8
"""Pixels per side of a patch."""
WIDTH = 128
DEPTH = 4
HEADS = 4


class ConvStem(nn.Module):
    """Patch embedding by three stride-2 convolutions and a projection: float[B, 3, H, W] -> float[B, P, D].

    Takes timm's ``embed_layer`` arguments. ``num_patches`` and ``grid_size`` are what timm reads from it.
    """

    def __init__(
        self,
        img_size: int = 64,
        patch_size: int = PATCH_SIZE,
        in_chans: int = 3,
        embed_dim: int = WIDTH,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if patch_size != PATCH_SIZE or dynamic_img_pad or img_size % patch_size:
            raise ValueError(f"ConvStem makes {PATCH_SIZE}-pixel patches of pictures whose side is a multiple of that")
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((in_chans, 32), (32, 64), (64, 96)):
            layers.append(nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, device=device, dtype=dtype))
            layers.append(nn.GroupNorm(8, channels_out, device=device, dtype=dtype))
            layers.append(nn.GELU())
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(96, embed_dim, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Patches in reading order: float[B, 3, H, W] -> float[B, P, D]."""
        return self.proj(self.stem(image)).flatten(2).transpose(1, 2)


def mini_vit(image_size: int = 64) -> VisionTransformer:
    """A new mini ViT with random weights.

    ``model.forward_features(image float[B, 3, S, S])`` gives ``float[B, 1 + (S / 8)^2, 128]``: the class token, then
    the patches in reading order, after all four blocks and the final LayerNorm (``model.norm``). There is no
    classifier head. Pictures are RGB, normalised with CLIP's mean and deviation. The shipped weights
    (``assets/mini/vit.safetensors``, fp16, this module's own keys) are for 64 pixels.
    """
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=image_size,
        patch_size=PATCH_SIZE,
        num_classes=0,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        embed_layer=ConvStem,
    )
