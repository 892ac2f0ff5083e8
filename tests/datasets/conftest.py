"""A tiny folder in COCO's layout, and data set sections as the configuration makes them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_lite.config.schema import BuildInfo, FileConfig, ProcessorPair, StorageConfig
from lavis_lite.datasets.builders.custom import CustomConfig
from lavis_lite.datasets.builders.images import ImageDatasetConfig

IMAGES = 12


def picture(seed: int, size: tuple[int, int] = (24, 18)) -> Image.Image:
    """Random pixels, RGB."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """`images/0.png` ... and `captions_{train,val}.json` in COCO's layout: two captions per image."""
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    for split, numbers in (("train", range(8)), ("val", range(8, IMAGES))):
        content = {
            "images": [{"id": 100 + n, "file_name": f"{n}.png"} for n in numbers],
            "annotations": [{"id": 2 * n + k, "image_id": 100 + n, "caption": f"Picture {n}, caption {k}."}
                            for k in range(2) for n in numbers],
        }
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(content))
    return tmp_path


def pair(train: dict[str, Any], evaluation: dict[str, Any]) -> ProcessorPair:
    """A processor section."""
    return ProcessorPair(train=train, eval=evaluation)


@pytest.fixture
def section() -> Callable[..., Any]:
    """(folder, files by split, config class, **more) -> a section that reads them."""

    def make(folder: Path, names: dict[str, str], cls: type[ImageDatasetConfig] = ImageDatasetConfig,
             **more: Any) -> Any:
        info = BuildInfo(annotations={split: FileConfig(storage=str(folder / name)) for split, name in names.items()},
                         images=StorageConfig(storage=str(folder / "images")))
        cfg = cls(build_info=info, **more)
        cfg.vis_processor = pair({"name": "blip_image_train", "image_size": 16},
                                 {"name": "blip_image_eval", "image_size": 16})
        cfg.text_processor = pair({"name": "blip_caption"}, {"name": "blip_caption"})
        return cfg

    return make


@pytest.fixture
def coco_section(coco_folder: Path, section: Callable[..., Any]) -> ImageDatasetConfig:
    """Section of the tiny COCO folder."""
    return section(coco_folder, {"train": "captions_train.json", "val": "captions_val.json"})


@pytest.fixture
def custom_section(section: Callable[..., Any], coco_folder: Path) -> Callable[..., CustomConfig]:
    """(text of a file, its name, **more) -> a custom section with that file, beside `images`, as train."""

    def make(text: str, name: str, **more: Any) -> CustomConfig:
        (coco_folder / name).write_text(text, encoding="utf-8")
        return section(coco_folder, {"train": name}, CustomConfig, **more)

    return make
