"""The builder of conversations with any number of pictures and videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig, FileConfig, StorageConfig
from lavis_lite.datasets.annotations.chats import COLUMNS, ChatLayout, Learn, read_conversations
from lavis_lite.datasets.annotations.rows import Row, RowErrors, RowTable, file_name
from lavis_lite.datasets.builders.base import IMAGES, QUESTIONS
from lavis_lite.datasets.builders.images import ImageTextBuilder
from lavis_lite.datasets.builders.video import VideoDatasetConfig, missing_readers
from lavis_lite.datasets.caption import Processor
from lavis_lite.datasets.chat import ChatDataset
from lavis_lite.datasets.files.image_paths import FileNameIn, missing_files
from lavis_lite.datasets.media.video import VideoFolder
from lavis_lite.datasets.shards.dataset import open_shards
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.io import files
from lavis_lite.registry import registry

_KEYS = ("image", "video", "turns")
"""keys of `columns`"""
NO_CHAT = {"image_pattern": "rows of conversations name their pictures", "features": "conversations read pictures",
           "arrays": "conversations read pictures",
           "captions_per_image": "rows are conversations", "instruction": "the model's chat_template writes the turns",
           **QUESTIONS}


@dataclass
class ChatConfig(VideoDatasetConfig):
    """Section of a data set of conversations; `annotations.chats` lists the dialects, which are recognised.

    `columns` says what image, video and turns are called in the files, if they have unusual names.
    """

    learn: Learn = "all"
    """all: every answer without a flag (loss, train, weight: false or 0) that excepts it; last: the last of a row"""
    video_frames: int = 8
    """of each video, evenly spread; each is a picture"""
    check_files: bool = True
    """false: missing pictures are not errors before the run, and `run.on_bad_sample` decides about them"""


@registry.register_builder("chat")
class ChatBuilder(ImageTextBuilder):
    """Conversations: LLaVA, ShareGPT, messages with roles or typed parts, query and response.

    `build_info.annotations.<split>.storage` is an annotation file, or webdataset tars: a folder, DIR/*.tar or
    DIR/{000000..000123}.tar.

    Samples and batches: `ChatDataset`, for training and evaluation alike; in evaluation a row may end with a question.
    """

    config_class: ClassVar[type[DatasetConfig]] = ChatConfig
    sample_keys: ClassVar[tuple[str, ...]] = ChatDataset.sample_keys
    eval_dataset: ClassVar[type[Any]] = ChatDataset
    ignored_keys: ClassVar[Mapping[str, str]] = {
        key: why for key, why in {**IMAGES, **NO_CHAT}.items() if key != "build_info.videos"}
    cfg: ChatConfig

    def __init__(self, name: str, cfg: ChatConfig) -> None:
        super().__init__(name, cfg)
        if cfg.video_frames < 1:
            raise ConfigError(f"datasets.{name}.video_frames must be at least 1; it is {cfg.video_frames}.")

    def refuse_unknown_columns(self) -> None:
        """Check the keys of `columns`: image, video and turns, each one name."""
        for key, value in self.cfg.columns.items():
            if key not in _KEYS or not isinstance(value, str):
                raise ConfigError(f"datasets.{self.name}.columns.{key}: "
                                  + ("must be one name." if key in _KEYS else did_you_mean(key, _KEYS)))

    def build(self, split: str, training: bool) -> ChatDataset | None:
        """The conversations of a split, every row checked; None where there is no such split.

        Raises:
            DataError: bad rows, or rows with missing pictures or videos, by file and row.
        """
        if split not in self.splits():
            return None
        vis = self.processor("vis_processor", training)
        entry = self.shards(split)
        if entry is not None:
            return self._of_shards(entry, split, training, vis)
        paths = self.annotation_files(split)
        folder, videos = self.folder_of(paths), self._videos(paths)
        table = self._read(paths, FileNameIn(folder.root), str(folder.root), split, training)
        if self.cfg.check_files:
            refuse_missing(table, {"image": folder.root, "video": videos.root})
        return ChatDataset(table, folder, videos, vis, self.cfg.video_frames)

    def _of_shards(self, entry: FileConfig, split: str, training: bool, vis: Processor) -> ChatDataset:
        """The conversations of webdataset tars, each with the pictures of its key."""
        opened = open_shards(entry, self._key(split), [], max_pixels=self.cfg.max_pixels,
                             several=self.row_filter(split) is not None)

        def file(value: Any) -> str:
            name = file_name(value)
            if self.cfg.check_files and name not in opened.images:
                raise ValueError(f"names {name[:200]!r}, which is in none of the shards")
            return name

        table = self._read([Path(name) for name in opened.table.files], file, opened.images.index.sha256, split,
                           training, opened.table.items())
        return ChatDataset(table, opened.images, VideoFolder(opened.images.root), vis, self.cfg.video_frames)

    def _read(self, paths: Sequence[Path], file: Callable[[Any], str], origin: str, split: str, training: bool,
              rows: Iterable[tuple[int, int, Any]] | None = None) -> RowTable:
        columns = {key: str(value) for key, value in self.cfg.columns.items()}
        layout = ChatLayout(columns, self.cfg.learn, file, answered=training)
        return read_conversations(paths, layout, self.row_filter(split), f"{split} {training} {origin} {self.cfg}",
                                  self.file_format(), rows)

    def _videos(self, paths: Sequence[Path]) -> VideoFolder:
        """Reader of the videos: below build_info.videos.storage, else beside the images."""
        storage: StorageConfig = self.cfg.build_info.videos
        root = files.resolve(storage.storage) if storage.storage else self._media_root(paths)
        return VideoFolder(root, self.cfg.max_pixels, self.cfg.reader, self.follows_links(root))

    def _is_val(self, row: Row) -> bool:
        named = next((row[column] for kind in ("image", "video") for column in self._named(kind) if row.get(column)),
                     None)
        return super()._is_val(row if named is None else {"image": named, "image_id": str(row)})

    def _named(self, kind: str) -> tuple[str, ...]:
        return (str(self.cfg.columns[kind]),) if kind in self.cfg.columns else COLUMNS[kind]

    def missing_packages(self) -> list[str]:
        """A reader of videos, if the section names a folder of videos and there is no reader."""
        return missing_readers(self.cfg) if self.cfg.build_info.videos.storage else []


def refuse_missing(table: RowTable, roots: Mapping[str, Path]) -> None:
    """Check that the files that rows name are there; each folder is listed once.

    Args:
        table: rows with media.
        roots: folder of the images and of the videos.

    Raises:
        DataError: up to 20 rows with a missing file, in one message.
    """
    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(table.skim()):
        for kind, name in row["media"]:
            first.setdefault((kind, name), index)
    errors = RowErrors()
    for kind, name, reason in _absent(first, roots):
        errors.add(table.location(first[kind, name]), f"{kind} {name[:200]} {reason}")
    errors.stop_if_any()


def _absent(names: Mapping[tuple[str, str], int], roots: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, why) of every file that is not there."""
    for kind, root in roots.items():
        own = [name for of, name in names if of == kind]
        yield from ((kind, name, f"is not in {root}") for name in missing_files(root, own))
