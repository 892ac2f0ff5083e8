"""Image-text retrieval data sets: caption pairs for training, a gallery of images and texts for evaluation."""

from __future__ import annotations

import random
from typing import Any

from lavis_lite.datasets.base import Sample
from lavis_lite.datasets.caption import CaptionDataset, CaptionEvalDataset


class RetrievalDataset(CaptionDataset):
    """Training pairs; image_id tells which texts belong to the same image, so that none serves as its negative."""


class RetrievalEvalDataset(CaptionEvalDataset):
    """Evaluation gallery: samples carry only image float32[3, H, W], index int, image_id int and instance_id str.

    Texts are not part of the samples: the task encodes `text` (all captions) itself.
    """

    sample_keys: tuple[str, ...] = ("image", "image_id", "index", "instance_id")

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """One image; `picture` stands in its place."""
        sample = super().sample(index, rng, picture)
        sample.pop("text_input", None)
        return sample
