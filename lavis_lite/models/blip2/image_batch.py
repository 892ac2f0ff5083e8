"""The pictures of a batch of samples, where several samples may have the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import DataError


@dataclass(frozen=True)
class Pictures:
    """U pictures of B samples; its length is B.

    Attributes:
        image: float[U,3,H,W], videos float[U,3,T,H,W], or what a frozen encoder made of them, float[U,P,Dv].
        rows: int64[B], the place of each sample's picture; None: sample b has picture b.
    """

    image: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image if self.rows is None else self.rows)

    def repeated(self) -> Tensor:
        """The picture of every sample: float[B,3,H,W], likewise videos and features."""
        return self.image if self.rows is None else self.image[self.rows]


def pictures_of(samples: Mapping[str, Any]) -> Pictures:
    """samples["image"], or samples["video"], and samples["image_rows"] where there are any.

    Raises:
        DataError: neither is there, or it has another shape; rows that are no places of pictures.
    """
    image = samples.get("image", samples.get("video"))
    if not isinstance(image, Tensor):
        given = f" ({type(image).__name__} is none)" if image is not None else ""
        raise DataError(f"samples need a tensor under 'image' or 'video'{given}; they have {sorted(samples)}. "
                        "vis_processors['eval'](picture)[None] makes one of a PIL image.")
    if image.ndim != 3 and (image.ndim not in (4, 5) or image.shape[1] != 3):
        raise DataError(f"an image has shape (B, 3, H, W), a video (B, 3, T, H, W); this one {tuple(image.shape)}.")
    rows = samples.get("image_rows")
    return Pictures(image, None if rows is None else _checked(rows, image))


def _checked(rows: Any, image: Tensor) -> Tensor:
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1:
        raise DataError(f"image_rows must be int64[B], one number for each sample, not {rows!r}.")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(image):
        raise DataError(f"image_rows must be from 0 to {len(image) - 1}, the places of the {len(image)} pictures; they "
                        f"go from {int(rows.min())} to {int(rows.max())}.")
    return rows.to(image.device)


def frames_of(rows: Tensor, frames: int) -> Tensor:
    """Places of pictures int64[B] -> places of their frames int64[B*T], where picture after picture has T frames."""
    return (rows[:, None] * frames + torch.arange(frames, device=rows.device)).flatten()
