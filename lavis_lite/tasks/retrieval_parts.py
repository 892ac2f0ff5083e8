"""The data of image-text retrieval: the gallery, this rank's images, all texts, candidates, and sizes of passes.

N images, M texts, Q query tokens, P patches, E width of the ITC space, L tokens of a text, K candidates kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.protocols import CaptionedImages
from lavis_lite.errors import DataError
from lavis_lite.metrics.retrieval import as_lists
from lavis_lite.models.base import at_least_float32


def check_captions(dataset: CaptionedImages, split: str) -> None:
    """Raise before any work if a split cannot be searched.

    Raises:
        DataError: an image has no caption.
    """
    found = as_lists(dataset.img2txt)
    bare = [image for image, texts in enumerate(found) if not texts]
    if bare:
        where = location_of(dataset, bare[0])
        raise DataError(f"split {split!r} cannot be scored: {len(bare)} of its {len(found)} images have no caption, "
                        f"the first at {where}. Remove them from the annotation file, or the split from "
                        "run.valid_splits and run.test_splits.")


@dataclass(frozen=True)
class Gallery:
    """N images and M texts, renumbered from 0 in the order of the data set.

    images: int[N], the data set's index of each image, ascending.
    texts: str[M].
    img2txt: the texts that are right for each image.
    txt2img: the images that are right for each text.
    """

    images: list[int]
    texts: list[str]
    img2txt: list[list[int]]
    txt2img: list[list[int]]

    @classmethod
    def of(cls, dataset: CaptionedImages, images: Sequence[int], captions_per_image: int | None = None) -> Gallery:
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
        number = {text: index for index, text in enumerate(texts)}
        img2txt = [[number[text] for text in found] for found in chosen]
        txt2img: list[list[int]] = [[] for _ in texts]
        for image, found in enumerate(img2txt):
            for text in found:
                txt2img[text].append(image)
        return cls(images, [dataset.text[text] for text in texts], img2txt, txt2img)


@dataclass(frozen=True)
class Sizes:
    """Sizes of blocks and passes. They may change the last bits of scores; the number of ranks changes nothing.

    image_block: images per block of ITC rows; with the evaluation's batch size, blocks and batches coincide.
    text_batch: texts per pass of the text encoder.
    pair_batch: (image, text) pairs per pass of the ITM head, at most.
    """

    image_block: int = 64
    text_batch: int = 256
    pair_batch: int = 256

    @property
    def pair_batch_least(self) -> int:
        """Least number of pairs after which a pass ends if the next text is longer."""
        return max(1, self.pair_batch // 8)


@dataclass(frozen=True)
class OwnImages:
    """This rank's images, ascending by their index in the gallery.

    indices: int64[n]; features: float32[n,Q,E], unit length; embeds: n tensors float[P,Dv], or None without re-ranking.
    """

    indices: Tensor
    features: Tensor
    embeds: list[Tensor] | None

    @classmethod
    def of(cls, indices: Sequence[int], features: Sequence[Tensor], embeds: Sequence[Tensor] | None,
           gallery: Gallery) -> OwnImages:
        """Order this rank's rows by the gallery; `indices` are the data set's image indices."""
        position = {image: number for number, image in enumerate(gallery.images)}
        order = sorted(range(len(indices)), key=lambda row: position[indices[row]])
        own = torch.tensor([position[indices[row]] for row in order], dtype=torch.long)
        stacked = torch.stack([features[row] for row in order]).float() if order else torch.empty(0, 1, 1)
        return cls(own, stacked, None if embeds is None else [embeds[row] for row in order])


@dataclass(frozen=True)
class Texts:
    """All texts of the gallery.

    ids: int64[M,L] and mask: bool[M,L], on the CPU.
    features: float32[M,E], unit length.
    tokens: the model's class of a batch of texts, called with ids and mask.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    tokens: Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Candidates:
    """Best K of each query, best first: index int64[N,K], score float32[N,K] (float64 by a model in float64)."""

    index: Tensor
    score: Tensor


@dataclass(frozen=True)
class BothWays:
    """Candidates of each image among the texts, and of each text among the images."""

    texts_of_image: Candidates
    images_of_text: Candidates


def best(index: Tensor, score: Tensor, keep: int) -> Candidates:
    """The `keep` best columns of each row, best first; equal scores keep their order; NaN is last.

    Args:
        index: int64[N, C], the candidate of each column.
        score: float[N, C].
        keep: at most this many.
    """
    score = at_least_float32(score)
    score = torch.where(score.isnan(), float("-inf"), score)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return Candidates(index.gather(1, order), score.gather(1, order))


def by_index(index: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Each row ordered by index, so that `best` breaks ties by index."""
    order = index.argsort(1)
    return index.gather(1, order), score.gather(1, order)


def trimmed(ids: Tensor, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask without columns of padding alone, on the model's device."""
    longest = max(int(mask.sum(1).max()), 1)
    return ids[:, :longest].to(device), mask[:, :longest].to(device)
