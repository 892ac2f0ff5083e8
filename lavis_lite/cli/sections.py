"""The data set that a `data` command names: its checked section, and its splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavis_lite.config.compose import compose, compose_dataset
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.errors import ConfigError, DataError, ErrorList, did_you_mean
from lavis_lite.registry import registry

_PROCESSOR: dict[str, dict[str, Any]] = {
    "images": {"name": "blip_image_eval", "image_size": 224},
    "videos": {"name": "alpro_video_eval"},
}
"""never run here; a builder requires one"""


def dataset_section(name: str | None, cfg_path: str | None, options: Sequence[str],
                    kind: str | None = None) -> tuple[str, DatasetConfig, list[str]]:
    """(name, checked section, training splits of the run) of a data set of the package or of a run.

    Args:
        name: of the data set; None: the only one of `cfg_path`.
        cfg_path: a run's configuration; None: a data set of the package.
        options: KEY=VALUE settings that override.
        kind: type of the data set.

    Raises:
        ConfigError: no data set is named, or it is unknown.
        ErrorList: its section has errors.
    """
    if cfg_path is None and name is None:
        raise ConfigError("name a data set: --dataset NAME, or --cfg-path YAML.")
    chosen = [*options, *([f"datasets.{name}.type={kind}"] if kind else [])]
    composition = compose(cfg_path, chosen) if cfg_path else compose_dataset(str(name), chosen)
    if composition.errors:
        raise ErrorList(f"{cfg_path or name} cannot be used:", composition.errors)
    sections = composition.config.datasets
    if name is None and len(sections) == 1:
        name = next(iter(sections))
    if name is None:
        raise ConfigError(f"--dataset: {cfg_path} has {len(sections)} data sets; {did_you_mean('', sections)}")
    if name not in sections:
        raise ConfigError(f"{cfg_path} has no data set {name!r}; {did_you_mean(name, sections)}")
    return name, sections[name], composition.config.run.train_splits


def with_processors(section: DatasetConfig) -> DatasetConfig:
    """The section, with an image processor if it has none."""
    media = "videos" if "video" in section.data_type else "images"
    for mode in ("train", "eval"):
        if not (getattr(section.vis_processor, mode) or {}).get("name"):
            setattr(section.vis_processor, mode, dict(_PROCESSOR[media]))
    return section


def table_split(name: str, section: DatasetConfig, split: str) -> ImageTable:
    """A split with `table` and `folder`; a training split has one row per caption.

    Raises:
        DataError: there is no such split, or its data set has no table of rows.
    """
    builder = registry.get_builder_class(section.builder or name)(name, section)
    if split not in builder.splits():
        raise DataError(f"--split: {name} has no split {split!r}; {did_you_mean(split, builder.splits())}")
    dataset = builder.build(split, training=split.startswith("train"))
    if not isinstance(dataset, ImageTable):
        raise DataError(f"{name}: data sets of the builder {section.builder or name!r} have no table of rows and "
                        "folder of images, which this command needs.")
    return dataset
