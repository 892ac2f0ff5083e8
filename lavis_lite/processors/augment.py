"""BLIP's RandAugment: a few operations of fixed strength, each applied with probability one half.

The list of operations, the strength table (level 0..10) and the grey fill are BLIP's. Operations work in uint8; at the
default level 5 brightness and sharpness have factor 1 and so change nothing, as in BLIP.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

_MAX_LEVEL = 10
_FILL = (128, 128, 128)
_TRANSLATE, _SHEAR, _DEGREES = 10, 0.3, 30
"""pixels, slope and degrees at level 10"""

Operation = Callable[[Image.Image, float, random.Random], Image.Image]


def rand_augment(pixels: Tensor, rng: random.Random, count: int, level: int) -> Tensor:
    """uint8[3, H, W] -> uint8[3, H, W] after up to `count` operations of strength `level` (0..10)."""
    chosen = [operation for operation in rng.choices(OPERATIONS, k=count) if rng.random() < 0.5]
    if not chosen:
        return pixels
    import torch

    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    for operation in chosen:
        image = operation(image, level / _MAX_LEVEL, rng)
    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1)


def _either_sign(value: float, rng: random.Random) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR, fillcolor=_FILL)


def _identity(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Pillow's. LAVIS negates an unsigned byte, which whitens pictures without a pixel of value 0."""
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageOps.equalize(image)


def _brightness(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * strength)


def _sharpness(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * strength)


def _shear_x(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, 1, _either_sign(_SHEAR * strength, rng), 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, 1, 0, 0, _either_sign(_SHEAR * strength, rng), 1, 0)


def _translate_x(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, 1, 0, _either_sign(_TRANSLATE * strength, rng), 0, 1, 0)


def _translate_y(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _either_sign(_TRANSLATE * strength, rng))


def _rotate(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    degrees = _either_sign(_DEGREES * strength, rng)
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_FILL)


OPERATIONS: tuple[Operation, ...] = (
    _identity, _auto_contrast, _brightness, _sharpness, _equalize,
    _shear_x, _shear_y, _translate_x, _translate_y, _rotate,
)
