"""The images of a batch of samples, in which several samples may share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import DataError


@dataclass(frozen=True)
class ImageBatch:
    """U images of B samples; its length is B.

    Attributes:
        image: float[U,3,H,W], videos float[U,3,T,H,W], or the output of a frozen encoder, float[U,P,Dv].
        index: int64[B], the image of each sample; None: sample b has image b.
    """

    image: Tensor
    index: Tensor | None = None

    @classmethod
    def of(cls, samples: Mapping[str, Any]) -> ImageBatch:
        """samples["image"] or samples["video"], with samples["image_rows"] as the index if samples share images.

        Raises:
            DataError: no image or one of another shape, or an index out of range.
        """
        image = samples.get("image", samples.get("video"))
        if not isinstance(image, Tensor):
            given = f" ({type(image).__name__} is none)" if image is not None else ""
            raise DataError(f"samples need a tensor under 'image' or 'video'{given}; they have {sorted(samples)}. "
                            "vis_processors['eval'](picture)[None] makes one of a PIL image.")
        if image.ndim != 3 and (image.ndim not in (4, 5) or image.shape[1] != 3):
            raise DataError(f"an image has shape (B, 3, H, W), a video (B, 3, T, H, W); this one {tuple(image.shape)}.")
        index = samples.get("image_rows")
        return cls(image, None if index is None else _checked(index, image))

    def __len__(self) -> int:
        return len(self.image if self.index is None else self.index)

    @property
    def frames(self) -> int:
        """T of videos; 1 of images."""
        return self.image.shape[2] if self.image.ndim == 5 else 1

    def repeated(self) -> Tensor:
        """The image of every sample: float[B,3,H,W], likewise videos and features."""
        return self.image if self.index is None else self.image[self.index]


def _checked(index: Any, image: Tensor) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        raise DataError(f"image_rows must be int64[B], one number for each sample, not {index!r}.")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(image):
        raise DataError(f"image_rows must be from 0 to {len(image) - 1}, the indices of the {len(image)} images; they "
                        f"go from {int(index.min())} to {int(index.max())}.")
    return index.to(image.device)


def frame_index(index: Tensor, frames: int) -> Tensor:
    """Indices of videos int64[B] -> indices of their frames int64[B*T]; the T frames of a video follow each other."""
    return (index[:, None] * frames + torch.arange(frames, device=index.device)).flatten()
