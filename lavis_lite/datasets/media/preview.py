"""A file of a data set -> what a person can be shown of it."""

from __future__ import annotations

from typing import TypeGuard

from PIL import Image

from lavis_lite.datasets.features.cache import FeatureFolder
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.media.video import VideoFolder


def preview(folder: ImageFolder, name: str) -> bytes | Image.Image:
    """The content of an image file, or the middle frame of a video.

    Raises:
        BadSample: it cannot be read.
    """
    if not isinstance(folder, VideoFolder):
        return folder.read(name)
    with folder.load(name) as video:
        return Image.fromarray(next(iter(video.frames([len(video) // 2]))))


def has_previews(folder: object) -> TypeGuard[ImageFolder]:
    """Whether a folder holds images or videos: not where features are kept in their place."""
    return isinstance(folder, ImageFolder) and not isinstance(folder, FeatureFolder)
