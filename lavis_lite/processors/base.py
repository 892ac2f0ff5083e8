"""The contract of processors."""

from __future__ import annotations

import random
from typing import Any, ClassVar


class BaseProcessor:
    """Turns one raw item (PIL image, text) into what a model takes.

    Contract: constructor arguments are the YAML parameters (their signature is what preflight checks);
    `__call__(item, rng)` draws every random number from `rng`, so that a sample's augmentation is a function of
    (seed, epoch, sample); without `rng` it uses Python's global generator.
    """

    is_random: bool = True
    """whether the result depends on `rng`"""
    takes: ClassVar[str] = "image"
    """what a data set hands it: `image` (a PIL image; texts too), `pixels` (upright RGB, uint8[H, W, 3]; such a
    processor takes PIL images too) or `video` (an open video: its length, and frames by their numbers)"""

    def __call__(self, item: Any, rng: random.Random | None = None) -> Any:
        """The processed item."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")
