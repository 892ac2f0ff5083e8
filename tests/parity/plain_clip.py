"""CLIP's image transformer in plain torch under LAVIS' names: patches, a norm, pre-norm blocks with QuickGELU."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.sigmoid(1.702 * values)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, inner), gelu=QuickGELU(), c_proj=nn.Linear(inner, width)))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.ln_1(hidden)
        hidden = hidden + self.attn(normed, normed, normed, need_weights=False)[0]
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


class Blocks(nn.Module):
    """Carries the name `transformer.resblocks`."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*blocks)


class PlainClip(nn.Module):
    """Image float[B,3,H,W] -> float[B,1+P,Dv], after the last block that is run."""

    def __init__(self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks([Block(width, heads, mlp_ratio) for _ in range(depth)])

    def forward(self, image: Tensor, positions: Tensor | None = None) -> Tensor:
        """`positions` float[1+P,Dv] in place of its own, for images of another size."""
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(image), 1, -1)
        hidden = torch.cat([first, patches], 1) + (self.positional_embedding if positions is None else positions)
        out: Tensor = self.transformer.resblocks(self.ln_pre(hidden))
        return out

    def resized(self, side: int) -> Tensor:
        """Position embeddings of a grid of `side` x `side` patches: bicubic, corners aligned, the first one kept."""
        first, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        old = round(len(grid) ** 0.5)
        image = grid.T.reshape(1, -1, old, old)
        image = nn.functional.interpolate(image, (side, side), mode="bicubic", align_corners=True)
        return torch.cat([first, image[0].flatten(1).T])
