"""Evaluation data sets without the pictures that their questions are about: such scores need no picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from lavis_lite.datasets.base import BaseDataset, Sample, location_of
from lavis_lite.datasets.loading.randomness import hash64, permutation
from lavis_lite.datasets.protocols import MapDataset, Ordered, SwappableImages
from lavis_lite.errors import DataError
from lavis_lite.registry import lacking, need

Control = Literal["none", "wrong_image", "blind"]
_SEED = 5


class AblatedImages(BaseDataset):
    """An evaluation data set with other pictures.

    wrong_image: every picture is replaced by another one of the split, always the same; each picture is used for
    exactly one other. blind: every picture is zeros, the mean colour after normalisation.

    Args:
        dataset: a `BaseDataset` with `picture(index, rng)` and `image_name(index)`; its `sample` accepts a picture as
            third argument.
        control: wrong_image | blind.

    Raises:
        DataError: a split of one picture has no other.
    """

    def __init__(self, dataset: MapDataset, control: Control) -> None:
        if lost := lacking(dataset, SwappableImages):
            raise DataError(f"run.control={control} needs a data set that gives its pictures apart; "
                            f"{type(dataset).__name__} has no {', '.join(lost)}. Set run.control=none.")
        self.dataset, self.control = need(dataset, SwappableImages, "run.control"), control
        self.sample_keys = getattr(dataset, "sample_keys", ())
        self.others = _others(self.dataset) if control == "wrong_image" else {}
        if (collater := getattr(dataset, "collater", None)) is not None:  # its own way to make batches stays
            self.collater = collater

    def __len__(self) -> int:
        return len(self.dataset)

    def location(self, index: int) -> str:
        """`file:row` of the annotation."""
        return location_of(self.dataset, index)

    @property
    def shares_pictures(self) -> bool:
        """Rows of one image are all shown the same other one."""
        return bool(getattr(self.dataset, "shares_pictures", False))

    def evaluation_order(self) -> Sequence[int]:
        """As without a control."""
        return self.dataset.evaluation_order() if isinstance(self.dataset, Ordered) else range(len(self))

    def image_name(self, index: int) -> str:
        """File name of the image that the row is about."""
        return self.dataset.image_name(index)

    def picture(self, index: int, rng: random.Random | None = None) -> Any:
        """The picture that replaces the row's own."""
        if self.control == "blind":
            import torch  # here, so that sections which name a control load without it

            return torch.zeros_like(torch.as_tensor(self.dataset.picture(index, rng)))
        return self.dataset.picture(self.others[self.image_name(index)], rng)

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """The row's sample with another picture in it."""
        shown = self.picture(index, rng) if picture is None else picture
        return self.dataset.sample(index, rng, shown)


def _others(dataset: SwappableImages) -> dict[str, int]:
    """Image name -> a row with another image: a shuffled ring of all images, each followed by its substitute."""
    first: dict[str, int] = {}
    for index in range(len(dataset)):
        first.setdefault(dataset.image_name(index), index)
    if len(first) < 2:
        raise DataError("run.control=wrong_image needs at least two different images in the split.")
    names = list(first)
    ring = [names[index] for index in permutation(hash64(_SEED), len(names)).tolist()]
    return {name: first[other] for name, other in zip(ring, [*ring[1:], ring[0]], strict=True)}
