"""ViTs without weights: EVA-CLIP's, CLIP's, and the embedded default's; and position tables of another size."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from lavis_lite.models.vision.shapes import MINI_DEPTH, MINI_PATCH_SIZE, ViTShape
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

MINI_WIDTH, MINI_HEADS = 128, 4


def build_eva(shape: ViTShape, image_size: int, drop_path_rate: float, with_norm: bool = False) -> nn.Module:
    """EVA-CLIP's ViT: absolute positions, fused qkv with separate q and v biases and none for k, eps 1e-6, no head."""
    from timm.models.eva import Eva

    vit = Eva(img_size=image_size, patch_size=shape.patch_size, num_classes=0, global_pool="", embed_dim=shape.width,
              depth=shape.depth, num_heads=shape.heads, mlp_ratio=shape.mlp_ratio, qkv_bias=True, qkv_fused=True,
              drop_path_rate=drop_path_rate, use_abs_pos_emb=True, use_rot_pos_emb=False,
              norm_layer=partial(nn.LayerNorm, eps=1e-6))
    if not with_norm:
        vit.norm = nn.Identity()
    return vit


def build_clip(shape: ViTShape, image_size: int, drop_path_rate: float, with_norm: bool = False) -> nn.Module:
    """CLIP's image ViT: a norm before the blocks, no patch bias, QuickGELU, eps 1e-5, no head."""
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=image_size, patch_size=shape.patch_size, num_classes=0, global_pool="",
                            embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads, mlp_ratio=shape.mlp_ratio,
                            pre_norm=True, norm_layer=partial(nn.LayerNorm, eps=1e-5), act_layer="quick_gelu",
                            drop_path_rate=drop_path_rate)
    if not with_norm:
        vit.norm = nn.Identity()
    return vit


class ConvStem(nn.Module):
    """Patch embedding by three stride-2 convolutions and a projection: float[B, 3, H, W] -> float[B, P, D].

    A plain patch embedding learns shapes far slower at the mini encoder's size. Takes the arguments of timm's
    `embed_layer`; timm reads `num_patches` and `grid_size`.
    """

    def __init__(self, img_size: int = 64, patch_size: int = MINI_PATCH_SIZE, in_chans: int = 3,
                 embed_dim: int = MINI_WIDTH, bias: bool = True, dynamic_img_pad: bool = False,
                 device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if patch_size != MINI_PATCH_SIZE or dynamic_img_pad or img_size % patch_size:
            raise ValueError(f"ConvStem takes {MINI_PATCH_SIZE}-pixel patches, and sides that are a multiple of that")
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((in_chans, 32), (32, 64), (64, 96)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, device=device, dtype=dtype),
                       nn.GroupNorm(8, channels_out, device=device, dtype=dtype), nn.GELU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(96, embed_dim, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Patches in reading order: float[B, 3, H, W] -> float[B, P, D]."""
        return self.proj(self.stem(image)).flatten(2).transpose(1, 2)


def mini_vit(image_size: int = 64) -> VisionTransformer:
    """The embedded default's encoder: a ViT of 0.9M parameters for 64-pixel images, with random weights.

    `model.forward_features(image float[B, 3, S, S])` gives float[B, 1 + (S / 8)^2, 128] after all four blocks and the
    final norm: the class token, then the patches in reading order. Images are normalised with CLIP's mean and
    deviation. The packaged weights (assets/mini/vit.safetensors, fp16) are for 64 pixels.
    """
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=image_size, patch_size=MINI_PATCH_SIZE, num_classes=0, embed_dim=MINI_WIDTH,
                             depth=MINI_DEPTH, num_heads=MINI_HEADS, embed_layer=ConvStem)


def resize_pos_embed(table: torch.Tensor, grid: int, prefix: int, align_corners: bool) -> torch.Tensor:
    """Interpolate position embeddings to another square grid, bicubic; entries of prefix tokens stay as they are.

    Args:
        table: float[1, prefix + g*g, D].
        grid: patches per side that are wanted.
        prefix: how many leading entries belong to no patch.
        align_corners: False as EVA, True as CLIP in LAVIS.

    Returns:
        float[1, prefix + grid*grid, D] in the dtype of `table`.
    """
    first, patches = table[:, :prefix], table[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return table
    image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=align_corners)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
