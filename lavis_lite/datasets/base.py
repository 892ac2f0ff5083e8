"""The contract of data sets: rows by number, randomness from outside."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from torch.utils.data import Dataset

Sample = dict[str, Any]


class BaseDataset(Dataset[Sample]):
    """A map-style data set whose samples are functions of (index, rng).

    `sample_keys` names the keys that every sample has; where sets are mixed into one batch, the keys common to all
    sets are kept, so that all processes see the same keys in every batch.
    """

    sample_keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def sample(self, index: int, rng: random.Random | None = None) -> Sample:
        """Sample of a row; all randomness comes from `rng`.

        Raises:
            BadSample: its image cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample")

    def place(self, index: int) -> str:
        """`file:row` the sample comes from, for messages."""
        return f"row {index}"

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)


def image_number(space: str, image: str) -> int:
    """A positive int64 that names an image: equal for equal images in whatever data set, different for others.

    Args:
        space: the image folder as the configuration names it.
        image: the file's name in it.
    """
    digest = hashlib.blake2b(f"{space.rstrip('/')}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
