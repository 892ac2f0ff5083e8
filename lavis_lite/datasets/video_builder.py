"""Builders of data sets of videos: those of images, with another column, another folder and another processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.builder import ImageCaptionBuilder, ImageDatasetConfig
from lavis_lite.datasets.video import ReaderName, VideoFolder, installed_readers
from lavis_lite.registry import registry


@dataclass
class VideoDatasetConfig(ImageDatasetConfig):
    """Section of a data set of videos: build_info.videos.storage is their folder."""

    reader: ReaderName = "auto"
    """decord, av (PyAV), or auto: decord, and PyAV where it is missing or fails"""


def video_folder(root: Path, max_pixels: int, reader: ReaderName) -> VideoFolder:
    """Reader of the videos below a folder.

    Raises:
        ConfigError: no package that reads videos is installed.
    """
    installed_readers(reader)
    return VideoFolder(root, max_pixels, reader)


@registry.register_builder("video_caption")
class VideoCaptionBuilder(ImageCaptionBuilder):
    """Captioned videos: lists {video, caption, image_id}, the caption one text or several.

    Samples as `image_caption`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoDatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageCaptionBuilder.sample_keys[1:])
    media: ClassVar[str] = "videos"
    cfg: VideoDatasetConfig

    def folder(self, root: Path) -> VideoFolder:
        """Reader of the videos below `root`."""
        return video_folder(root, self.cfg.max_pixels, self.cfg.reader)
