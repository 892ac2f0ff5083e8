"""Captioned images that come in shards only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from lavis_lite.config.schema import FileConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageDatasetConfig
from lavis_lite.datasets.builders.keys import SHARDS
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


@registry.register_builder("image_shards")
class ImageShardBuilder(ImageCaptionBuilder):
    """Shards of captioned images; samples as `image_caption`.

    `build_info.annotations.<split>.storage` (or `url`) is a folder, DIR/*.tar or DIR/{000000..000123}.tar;
    `build_info.storage`, where LAVIS has it, is that of the split `train`.
    """

    ignored_keys: ClassVar[Mapping[str, str]] = SHARDS

    def __init__(self, name: str, cfg: ImageDatasetConfig) -> None:
        info = cfg.build_info
        if info.storage and info.annotations:
            raise ConfigError(f"datasets.{name}.build_info.storage has no effect beside build_info.annotations. "
                              "Take it out.")
        if info.storage:
            train = {"train": FileConfig(storage=info.storage)}
            cfg = copy.copy(cfg)
            cfg.build_info = replace(info, annotations=train)
        super().__init__(name, cfg)

    def shards(self, split: str) -> FileConfig | None:
        """The entry of a split."""
        return self.cfg.build_info.annotations.get(self._own(split))
