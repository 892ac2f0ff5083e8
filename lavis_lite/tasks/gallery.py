"""The two sides of a retrieval evaluation: which images and which captions are searched, and who is right for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_lite.errors import DataError
from lavis_lite.metrics.retrieval import as_lists


def check_dataset(dataset: Any, split: str) -> None:
    """Raise before any work when a split cannot be searched.

    Raises:
        DataError: the data set has no captions by image, or an image has none.
    """
    captions = getattr(dataset, "img2txt", None)
    if captions is None or not hasattr(dataset, "text"):
        raise DataError(f"split {split!r} cannot be scored: its data set ({type(dataset).__name__}) does not list "
                        "captions by image (`text` and `img2txt`). Take a caption or retrieval builder, or remove the "
                        "split from run.valid_splits and run.test_splits.")
    found = as_lists(captions)
    bare = [image for image, texts in enumerate(found) if not texts]
    if bare:
        place = dataset.location(bare[0]) if hasattr(dataset, "location") else f"image {bare[0]}"
        raise DataError(f"split {split!r} cannot be scored: {len(bare)} of its {len(found)} images have no caption, "
                        f"the first at {place}. Remove them from the annotation file, or the split from "
                        "run.valid_splits and run.test_splits.")


@dataclass(frozen=True)
class Gallery:
    """N images and M texts, numbered anew from 0 in the order of the data set.

    images: int[N], the data set's index of each image, ascending.
    texts: str[M].
    img2txt: the texts that are right for each image.
    txt2img: the image that is right for each text.
    """

    images: list[int]
    texts: list[str]
    img2txt: list[list[int]]
    txt2img: list[int]

    @classmethod
    def of(cls, dataset: Any, images: Sequence[int], captions_per_image: int | None = None) -> Gallery:
        """The gallery of an evaluation data set.

        Args:
            dataset: has `text` (list[str]) and `img2txt` (image index -> text indices), as LAVIS' retrieval sets.
            images: indices of the images that were evaluated; with `on_bad_sample: skip` some may be missing.
            captions_per_image: only the first n captions of each image; None: all.

        Raises:
            ValueError: an image was evaluated twice.
            DataError: there is no image.
        """
        images = sorted(images)
        if len(set(images)) != len(images):
            twice = next(one for one, two in zip(images, images[1:], strict=False) if one == two)
            raise ValueError(f"image {twice} of the evaluation split was evaluated twice")
        captions = as_lists(dataset.img2txt)
        chosen = [captions[image][:captions_per_image] for image in images]
        if not images:
            raise DataError("the evaluation split gave no image; check its annotation file and run.on_bad_sample.")
        texts = sorted({text for found in chosen for text in found})
        number = {text: place for place, text in enumerate(texts)}
        img2txt = [[number[text] for text in found] for found in chosen]
        txt2img = [0] * len(texts)
        for image, found in enumerate(img2txt):
            for text in found:
                txt2img[text] = image
        return cls(images, [dataset.text[text] for text in texts], img2txt, txt2img)

