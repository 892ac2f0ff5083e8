"""The plain twin of the image pipeline: what LAVIS does, with PIL and torchvision, given the same random numbers.

Decoded by Pillow, cropped and resized as a PIL image (bicubic), turned into floats and normalised. It is the reference
for equal pixels and for speed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lavis_lite.processors.image import MEAN, STD, random_crop_box
from lavis_lite.torchvision_shim import ensure_torchvision


class PlainTrainView:
    """JPEG file -> float32[3, S, S] by random resized crop and mirror, as `blip2_image_train`.

    Args:
        size: output pixels, square.
        scale: share of the area that a crop covers.
    """

    def __init__(self, size: int = 224, scale: tuple[float, float] = (0.5, 1.0)) -> None:
        ensure_torchvision()
        from torchvision.transforms import InterpolationMode, functional

        self.size, self.scale, self.functional = size, scale, functional
        self.bicubic: Any = InterpolationMode.BICUBIC

    def __call__(self, path: Path | str, rng: random.Random) -> Tensor:
        """The view of a file."""
        return self.normalised(self.view(path, rng))

    def view(self, path: Path | str, rng: random.Random) -> Image.Image:
        """Crop, resize and mirror, as a PIL image."""
        image = Image.open(path).convert("RGB")
        box = random_crop_box(image.height, image.width, self.scale, rng)
        image = self.functional.resized_crop(image, *box, [self.size, self.size], self.bicubic)
        return self.functional.hflip(image) if rng.random() < 0.5 else image

    def normalised(self, image: Image.Image) -> Tensor:
        """float32[3, S, S]."""
        return self.functional.normalize(self.functional.to_tensor(image), MEAN, STD)


class RowsFirstView(PlainTrainView):
    """The same with the two passes of the resize in the order of Pillow up to 12 (13: the cheaper one)."""

    def view(self, path: Path | str, rng: random.Random) -> Image.Image:
        """Crop, resize and mirror, as a PIL image."""
        image = Image.open(path).convert("RGB")
        top, left, height, width = random_crop_box(image.height, image.width, self.scale, rng)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, height), Image.Resampling.BICUBIC)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return self.functional.hflip(image) if rng.random() < 0.5 else image
