"""The builder for files of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lavis_lite.datasets.annotations.rows import Field, Row, file_name, identifier, texts
from lavis_lite.datasets.builders.images import ImageDatasetConfig, ImageTextBuilder
from lavis_lite.datasets.loading.randomness import word
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


@dataclass
class CustomConfig(ImageDatasetConfig):
    """Section of the `custom` builder: what the columns of your file are called."""

    image_column: str = "image"
    """path of the image, relative to build_info.images.storage (by default the annotation file's folder)"""
    caption_column: str = "caption"
    """one caption or a list of them"""
    id_column: str | None = None
    """number or name of the image, for result files"""
    val_fraction: float = 0.0
    """share of the images (0..1) taken from the train file for a val split, chosen by a hash of their names"""


@registry.register_builder("custom")
class CustomBuilder(ImageTextBuilder):
    """Your own JSON, JSONL, CSV or TSV file with an image and a caption column; samples as `image_caption`."""

    config_class = CustomConfig
    cfg: CustomConfig

    def __init__(self, name: str, cfg: CustomConfig) -> None:
        super().__init__(name, cfg)
        if not 0 <= cfg.val_fraction < 1:
            raise ConfigError(f"datasets.{name}.val_fraction must be at least 0 and below 1; it is {cfg.val_fraction}.")

    def splits(self) -> list[str]:
        """Splits with a file of their own, those of split_values, and val where val_fraction makes one."""
        made = list(self.cfg.split_values) if self.cfg.split_column else ["val"] if self.cfg.val_fraction else []
        return list(dict.fromkeys([*self.cfg.build_info.annotations, *made]))

    def fields(self, training: bool) -> list[Field]:
        """Columns by the names that the section gives."""
        caption = Field("caption", texts, self.cfg.caption_column, training or self.cfg.captions_required)
        number = [Field("image_id", identifier, self.cfg.id_column)] if self.cfg.id_column else []
        return [Field("image", file_name, self.cfg.image_column), caption, *number]

    def row_filter(self, split: str) -> Callable[[Row], bool] | None:
        """By split_column, or by the hash that makes the val split."""
        if self.cfg.split_column:
            return super().row_filter(split)
        if self.cfg.val_fraction and "val" not in self.cfg.build_info.annotations and split in ("train", "val"):
            return lambda row: self._is_val(row) == (split == "val")
        return None

    def _is_val(self, row: Row) -> bool:
        name = str(row.get(self.cfg.image_column))
        return word(*name.encode("utf-8", "surrogatepass")) < self.cfg.val_fraction * 2**64
