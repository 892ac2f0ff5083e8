"""Evaluation data sets without the pictures that their questions are about: such scores need no picture."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any, ClassVar, Literal

from lavis_lite.datasets.base import BaseDataset, Sample, location_of
from lavis_lite.datasets.loading.sampler import hash64, permutation
from lavis_lite.datasets.protocols import ManyImages, MapDataset, Ordered, SwappableImages
from lavis_lite.errors import DataError
from lavis_lite.registry import lacking

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

    needs: ClassVar[type] = SwappableImages
    dataset: Any

    def __init__(self, dataset: MapDataset, control: Control) -> None:
        if lost := lacking(dataset, self.needs):
            raise DataError(f"run.control={control} needs a data set that gives its pictures apart; "
                            f"{type(dataset).__name__} has no {', '.join(lost)}. Set run.control=none.")
        self.dataset, self.control = dataset, control
        self.sample_keys = getattr(dataset, "sample_keys", ())
        self.others = self._others() if control == "wrong_image" else {}
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
            return blank(self.dataset.picture(index, rng))
        return self.dataset.picture(self.others[self.image_name(index)], rng)

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """The row's sample with another picture in it."""
        shown = self.picture(index, rng) if picture is None else picture
        return self.dataset.sample(index, rng, shown)

    def _others(self) -> dict[Any, Any]:
        """Image name -> a row with another image."""
        first: dict[str, int] = {}
        for index in range(len(self)):
            first.setdefault(self.image_name(index), index)
        return {name: first[other] for name, other in _ring(first).items()}


class AblatedConversations(AblatedImages):
    """Conversations with other pictures: each of a row's images and videos is replaced, rows without any stay.

    A video that stands for an image gives its first frame; an image that stands for a video is repeated.
    """

    needs: ClassVar[type] = ManyImages

    def picture(self, index: int, rng: random.Random | None = None) -> list[list[Any]]:
        """For each of the row's images and videos, the pictures that replace its own."""
        files = self.dataset.media(index)
        if self.control == "blind":
            return [list(map(blank, self.dataset.views(*file, rng))) for file in files]
        counts = [1 if kind == "image" else self.dataset.frames for kind, _ in files]
        return [list(islice(cycle(self.dataset.views(*self.others[file], rng)), count))
                for file, count in zip(files, counts, strict=True)]

    def _others(self) -> dict[Any, Any]:
        """(kind, name) of a file -> that of another."""
        return _ring(dict.fromkeys(file for index in range(len(self)) for file in self.dataset.media(index)))


def blank(picture: Any) -> Any:
    """Zeros in the shape of a processed picture."""
    import torch  # here, so that sections which name a control load without it

    return torch.zeros_like(torch.as_tensor(picture))


def _ring(given: Iterable[Hashable]) -> dict[Any, Any]:
    """Each of different names -> another one: a shuffled ring, in which each is followed by its substitute."""
    names = list(given)
    if len(names) < 2:
        raise DataError("run.control=wrong_image needs at least two different images in the split.")
    ring = [names[index] for index in permutation(hash64(_SEED), len(names)).tolist()]
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))
