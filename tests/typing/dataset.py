"""A data set and its builder, made of what the package has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lavis_lite import BaseDataset, BaseDatasetBuilder
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.protocols import Captions
from lavis_lite.registry import registry


class Colors(BaseDataset):
    """One plain picture per color; in training and in evaluation."""

    sample_keys = ("image", "text_input", "image_id", "index")
    names = ("red", "green", "blue")
    has_text = True

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, rng: random.Random | None = None) -> dict[str, Any]:
        """A picture in which one channel is full."""
        image = torch.zeros(3, 64, 64)
        image[index] = 1.0
        return {"image": image, "text_input": self.names[index], "image_id": index, "index": index}

    @property
    def captions(self) -> list[list[str]]:
        """Of each picture."""
        return [[name] for name in self.names]

    def references(self, index: int) -> list[str]:
        """As they are written."""
        return [self.names[index]]


@dataclass
class ColorsConfig(DatasetConfig):
    """Section `datasets.typed_colors`."""

    shades: int = 1


@registry.register_builder("typed_colors")
class ColorsBuilder(BaseDatasetBuilder):
    """Needs no files."""

    config_class: ClassVar[type[DatasetConfig]] = ColorsConfig
    sample_keys = Colors.sample_keys
    eval_dataset = Colors
    cfg: ColorsConfig

    def splits(self) -> list[str]:
        """Training and validation."""
        return ["train", "val"]

    def build(self, split: str, training: bool) -> Colors | None:
        """The same pictures for both."""
        return Colors() if split in self.splits() else None

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """None."""
        return []

    def fetch(self) -> None:
        """Nothing to fetch."""


def main() -> Captions:
    """The data set has what captioning needs."""
    dataset = ColorsBuilder("typed_colors", ColorsConfig()).build("val", training=False)
    assert dataset is not None
    return dataset
