"""LAVIS' `RandomAugment`, by this package's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavis_lite.errors import ConfigError
from lavis_lite.processors.augment import rand_augment

BLIP = {"Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize", "ShearX", "ShearY", "TranslateX",
        "TranslateY", "Rotate"}


class RandomAugment:
    """BLIP's operations on a picture.

    Args:
        N: operations drawn. M: their strength, 0 to 10. isPIL: whether pictures are of Pillow.
        augs: BLIP's ten operations; no others are here.
    """

    def __init__(self, N: int = 2, M: int = 10, isPIL: bool = False, augs: Sequence[str] = ()) -> None:
        if augs and set(augs) != BLIP:
            raise ConfigError(f"RandomAugment: only BLIP's operations are carried ({', '.join(sorted(BLIP))}).")
        self.N, self.M, self.isPIL = N, M, isPIL

    def __call__(self, img: Any) -> Any:
        """uint8[H,W,3] (or a picture of Pillow) -> uint8[H,W,3]."""
        pixels = torch.from_numpy(np.array(img, copy=True)).permute(2, 0, 1)
        found = rand_augment(pixels, random.Random(random.getrandbits(32)), self.N, self.M)
        array = found.permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(array) if self.isPIL else array


class VideoRandomAugment(RandomAugment):
    """The same operations on all frames of a clip."""

    def __init__(self, N: int = 2, M: int = 10, p: float = 0.0, tensor_in_tensor_out: bool = True,
                 augs: Sequence[str] = ()) -> None:
        super().__init__(N, M, augs=augs)
        self.as_tensor = tensor_in_tensor_out

    def __call__(self, img: Any) -> Any:
        """uint8[T,H,W,3] -> float[T,H,W,3] (or an array)."""
        state = random.getstate()
        found = []
        for frame in np.asarray(img, dtype=np.uint8):
            random.setstate(state)  # one draw serves all frames
            found.append(super().__call__(frame))
        clip = np.stack(found)
        return torch.from_numpy(clip).float() if self.as_tensor else clip
