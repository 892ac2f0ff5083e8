"""Builders of data sets of videos: those of images, with another column, another folder and another processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.builders.base import DIALOGUES, FEATURES, QUESTIONS, VIDEOS
from lavis_lite.datasets.builders.dialogue import ImageDialogueBuilder, ImageDialogueConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageDatasetConfig, ImageTextBuilder
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


@dataclass
class VideoDialogueConfig(ImageDialogueConfig, VideoDatasetConfig):
    """Section of a data set of dialogues about videos; `image_pattern` gives the path of a dialogue's video."""


def missing_readers(cfg: VideoDatasetConfig) -> list[str]:
    """A sentence if no package that reads videos is installed."""
    try:
        installed_readers(cfg.reader)
    except ConfigError as error:
        return [str(error)]
    return []


class Videos(ImageTextBuilder):
    """What the builders of videos share: the folder, and the package that reads it."""

    media: ClassVar[str] = "videos"
    cfg: VideoDatasetConfig

    def folder(self, root: Path) -> VideoFolder:
        """Reader of the videos below `root`.

        Raises:
            ConfigError: no package that reads videos is installed.
        """
        if not self.cfg.arrays:
            installed_readers(self.cfg.reader)
        return VideoFolder(root, self.cfg.max_pixels, self.cfg.reader, self.follows_links(root))

    def missing_packages(self) -> list[str]:
        """A reader of videos, if videos are read and there is not one."""
        return [] if self.cfg.arrays else missing_readers(self.cfg)


@registry.register_builder("video_caption")
class VideoCaptionBuilder(Videos, ImageCaptionBuilder):
    """Captioned videos: lists {video, caption, image_id}, the caption one text or several.

    Samples as `image_caption`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoDatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageCaptionBuilder.sample_keys[1:])
    ignored_keys: ClassVar[Mapping[str, str]] = {**VIDEOS, **FEATURES}


@registry.register_builder("video_retrieval")
class VideoRetrievalBuilder(VideoCaptionBuilder):
    """The files of `video_caption` for retrieval. Training: as captions, with image_id."""

    train_dataset = RetrievalDataset
    eval_dataset = RetrievalEvalDataset


@registry.register_builder("video_qa")
class VideoQABuilder(Videos, ImageQABuilder):
    """Questions about videos: lists {video, question, answer, question_id}, and whatever `image_qa` reads.

    Samples as `image_qa`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoQAConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageQABuilder.sample_keys[1:])
    ignored_keys: ClassVar[Mapping[str, str]] = {**VIDEOS, **FEATURES, **QUESTIONS}
    cfg: VideoQAConfig


@registry.register_builder("video_dialogue")
class VideoDialogueBuilder(Videos, ImageDialogueBuilder):
    """Dialogues about videos: the layout of AVSD, and whatever `image_dialogue` reads.

    Samples as `image_dialogue`, with video float32[3, T, H, W] in the place of image.
    """

    config_class: ClassVar[type[DatasetConfig]] = VideoDialogueConfig
    sample_keys: ClassVar[tuple[str, ...]] = ("video", *ImageDialogueBuilder.sample_keys[1:])
    ignored_keys: ClassVar[Mapping[str, str]] = {**VIDEOS, **FEATURES, **QUESTIONS, **DIALOGUES}
    cfg: VideoDialogueConfig
