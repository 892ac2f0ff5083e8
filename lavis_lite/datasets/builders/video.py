"""Builders of data sets of videos: those of images, with another column, another folder and another processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.builders.base import FEATURES, QUESTIONS, VIDEOS
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageDatasetConfig
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.caption import RetrievalDataset, RetrievalEvalDataset
from lavis_lite.datasets.media.video import ReaderName, VideoFolder, installed_readers
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


@dataclass
class VideoDatasetConfig(ImageDatasetConfig):
    """Section of a data set of videos: build_info.videos.storage is their folder."""

    reader: ReaderName = "auto"
    """decord, av (PyAV), or auto: decord, and PyAV where it is missing or fails"""


@dataclass
class VideoQAConfig(ImageQAConfig, VideoDatasetConfig):
    """Section of a data set of questions about videos; `image_pattern` gives the path of a row's video."""


def video_folder(root: Path, cfg: VideoDatasetConfig, follow_links: bool) -> VideoFolder:
    """Reader of the videos below a folder.

    Raises:
        ConfigError: no package that reads videos is installed.
    """
    installed_readers(cfg.reader)
    return VideoFolder(root, cfg.max_pixels, cfg.reader, follow_links)


def missing_readers(cfg: VideoDatasetConfig) -> list[str]:
    """A sentence if no package that reads videos is installed."""
    try:
        installed_readers(cfg.reader)
    except ConfigError as error:
        return [str(error)]
    return []


@registry.register_builder("video_caption")
class VideoCaptionBuilder(ImageCaptionBuilder):
    """Captioned videos: lists {video, caption, image_id}, the caption one text or several.

    Samples as `image_caption`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoDatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageCaptionBuilder.sample_keys[1:])
    ignored_keys: ClassVar[Mapping[str, str]] = {**VIDEOS, **FEATURES}
    media: ClassVar[str] = "videos"
    cfg: VideoDatasetConfig

    def folder(self, root: Path) -> VideoFolder:
        """Reader of the videos below `root`."""
        return video_folder(root, self.cfg, self.follows_links(root))

    def missing_packages(self) -> list[str]:
        """A reader of videos, if there is not one."""
        return missing_readers(self.cfg)


@registry.register_builder("video_retrieval")
class VideoRetrievalBuilder(VideoCaptionBuilder):
    """The files of `video_caption` for retrieval. Training: as captions, with image_id."""

    train_dataset = RetrievalDataset
    eval_dataset = RetrievalEvalDataset


@registry.register_builder("video_qa")
class VideoQABuilder(ImageQABuilder):
    """Questions about videos: lists {video, question, answer, question_id}, and whatever `image_qa` reads.

    Samples as `image_qa`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoQAConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageQABuilder.sample_keys[1:])
    ignored_keys: ClassVar[Mapping[str, str]] = {**VIDEOS, **FEATURES, **QUESTIONS}
    media: ClassVar[str] = "videos"
    cfg: VideoQAConfig

    def folder(self, root: Path) -> VideoFolder:
        """Reader of the videos below `root`."""
        return video_folder(root, self.cfg, self.follows_links(root))

    def missing_packages(self) -> list[str]:
        """A reader of videos, if there is not one."""
        return missing_readers(self.cfg)

    def columns(self) -> dict[str, str | list[str]]:
        """As for images, but a row names its `video`."""
        return {"image": "video", **super().columns()}
