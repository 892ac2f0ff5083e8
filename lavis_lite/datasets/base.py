"""The contract of data sets: rows by number, randomness from outside."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.protocols import Located

Sample = dict[str, Any]


class BaseDataset:
    """A map-style data set, as torch's DataLoader takes it, whose samples are functions of (index, rng).

    `sample_keys` names the keys that every sample has. If sets are mixed into one batch, the keys common to all sets
    are kept, so that all processes see the same keys in every batch.

    `shares_pictures` says that rows of one `image_name(index)` have the same picture, and that `sample` accepts what
    `picture(index, rng)` gave as a third argument. Evaluation then reads it once for all of them in a batch.
    """

    sample_keys: tuple[str, ...] = ()

    @property
    def shares_pictures(self) -> bool:
        """Whether several rows may be given one picture; see the class."""
        return False

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def sample(self, index: int, rng: random.Random | None = None) -> Sample:
        """Sample of a row; all randomness comes from `rng`.

        Raises:
            BadSample: its image cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample")

    def evaluation_order(self) -> Sequence[int]:
        """All rows in the order in which batches are best made of them: the same in every process."""
        return range(len(self))

    def location(self, index: int) -> str:
        """`file:row` that a sample comes from, for messages."""
        return f"row {index}" if type(self).place is BaseDataset.place else self.place(index)

    def place(self, index: int) -> str:
        """The name of `location` in version 0.2; data sets that define it keep working."""
        return self.location(index)

    def content_hash(self) -> str | None:
        """Hash of the samples' annotations, without the media files; None: not known.

        A run is resumed on equal content only.
        """
        return None

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)


class TableDataset(BaseDataset):
    """A data set with one sample per row of `table`."""

    table: RowTable
    needs_words = True
    """whether a sample without words after its text processor is a bad sample"""

    def __len__(self) -> int:
        return len(self.table)

    def location(self, index: int) -> str:
        """`file:row` of the annotation."""
        return self.table.location(index)

    def content_hash(self) -> str | None:
        """Hash of all rows, in order."""
        return self.table.content_hash()


def location_of(dataset: object, index: int) -> str:
    """`file:row` of a sample of any map-style data set, for messages."""
    return dataset.location(index) if isinstance(dataset, Located) else f"row {index}"


def image_number(space: str, image: str) -> int:
    """A positive int64 that names an image: equal for equal images in whatever data set, different for others.

    Args:
        space: the image folder as the configuration names it.
        image: the file's name in it.
    """
    digest = hashlib.blake2b(f"{space.rstrip('/')}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
